"""Threads, RecBole's names, and slates."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from reasonrec_fast.cli.tables import write_rows
from reasonrec_fast.data import load_interactions
from reasonrec_fast.data.reading import read_table
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.dataset import RequestBuilder
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig
from reasonrec_fast.models.optirag.knowledge import Knowledge
from reasonrec_fast.models.optirag.prompt import TokenIds
from reasonrec_fast.models.optirag.retriever import Retriever


def test_threads_read_large_fields(tmp_path):
    for number in range(8):
        rows = "".join(f'a,5" {"k" * 200_000}\n' for _ in range(3 + 3 * number))
        (tmp_path / f"{number}.csv").write_text("user,item\n" + rows)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert [len(t) for t in pool.map(lambda n: read_table(tmp_path / f"{n}.csv"), range(8))] == list(
                range(3, 27, 3)
            )


def test_columns_of_recbole_keep_their_names(tmp_path):
    """Scores come with the columns of the request file, as they came."""
    (tmp_path / "a.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\na\tx\t1\n")
    write_rows(
        str(tmp_path / "out.tsv"), read_table(tmp_path / "a.inter"), np.arange(1), {"depth": np.ones(1, np.int64)}
    )
    assert (tmp_path / "out.tsv").read_text().splitlines()[0] == "user_id:token\titem_id:token\ttimestamp:float\tdepth"


class _Words:
    bos_token_id = unk_token_id = None
    all_special_ids = ()

    def __call__(self, text, **options):
        return {"input_ids": text.split(" ")}


def test_a_later_request_reads_events_since_an_earlier_request():
    g = np.random.default_rng(0)
    items = pd.DataFrame({"id": [f"f{i}" for i in range(9)], "title": [f"Film-{i}" for i in range(9)]})
    data = load_interactions(
        pd.DataFrame({"user": [f"u{u}" for u in g.integers(0, 9, 99)], "item": [f"f{i}" for i in g.integers(0, 9, 99)],
                      "label": g.integers(0, 2, 99), "timestamp": range(99)}), items,
    )  # fmt: skip
    known = Knowledge(data, Retriever.train(data, np.arange(99), EmbeddingConfig(dim=8, steps=2)))
    rows = [("n", "f1", 1, 100), ("n", "f2", None, 200), ("n", "f3", 0, 300), ("n", "f4", None, 400)]

    def prefix(rows):
        """Of the request of f4."""
        table = load_interactions(
            pd.DataFrame(rows, columns=["user", "item", "label", "timestamp"]), items, allow_unlabelled=True
        )
        matched = known.match(table, np.flatnonzero(table.labels < 0))
        builder = RequestBuilder(matched.table, None, known.retriever, TokenIds(_Words()), OptiRAGConfig(),
                                 index=known.index("genres"), ticks=matched.ticks)  # fmt: skip
        result = builder.requests(matched.rows, alone=True)
        return next(slate.prefix for slate in result.slates if len(result.rows) - 1 in slate.rows)

    assert any("Film-3" in word for word in prefix(rows))
    assert prefix(rows) == prefix([row for row in rows if row[1] != "f2"])


@pytest.mark.parametrize("text", ["True", "False"])
def test_labels_as_pandas_writes_booleans(tmp_path, text):
    """``to_csv`` of a column of bool."""
    pd.DataFrame({"user": ["a"], "item": ["x"], "timestamp": [1], "label": [text == "True"]}).to_csv(tmp_path / "a.csv")
    assert load_interactions(tmp_path / "a.csv").labels.tolist() == [int(text == "True")]


@pytest.mark.parametrize("time", ["0x5f5e1000", " 1600000000"])
def test_how_a_time_is_read_does_not_depend_on_other_rows(tmp_path, time):
    """A quote within a title decides which reader is used: both must give the same result."""
    results = []
    for title in ("a", '5" disk'):
        (tmp_path / "a.csv").write_text(f"user,item,timestamp,label,title\nu,x,{time},1,{title}\n")
        try:
            results.append(load_interactions(tmp_path / "a.csv").timestamps.tolist())
        except ValueError:
            results.append("refused")
    assert results[0] == results[1]
