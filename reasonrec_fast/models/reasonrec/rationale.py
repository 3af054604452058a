"""What a chain of thought may say: tastes, evidence and comparisons, from training events before a moment alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from reasonrec_fast.arrays import as_rows
from reasonrec_fast.data import UNLABELLED, DataError, Interactions
from reasonrec_fast.data.timeline import Timeline
from reasonrec_fast.models.reasonrec.words import ItemWords, strongest

LEVELS = ("very low", "low", "medium", "high", "very high")
"""Stated confidences, for probabilities below 0.2, 0.4, 0.6 and 0.8, and above."""

LEADING = 6
"""A user's commonest attribute values, which are what a question tells of tastes, and what a chain compares with."""
_VALUES, _CHARACTERS = 3, 100  # attribute values of an item, and of such a value


def stated_confidence(probability: float) -> str:
    """A probability in words.

    >>> stated_confidence(0.53)
    'medium'
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability: expected in [0, 1]; got {probability}")
    return LEVELS[min(int(probability * 5), 4)]


class Descriptions(ItemWords):
    """Sentences about items and tastes, from the catalogue alone; never an identifier."""

    def taste_in_words(self, items: Sequence[int] | np.ndarray) -> str:
        """A preference summary: ``Skin Care (4 of 6) and Olay (2 of 6)``."""
        if not len(items):
            return "nothing that is known yet"
        parts = [f"{value[:_CHARACTERS]} ({count} of {len(items)})" for value, count in self.tastes(items)]
        return listed(parts) or "things that have no description"

    def profile(self, items: Sequence[int] | np.ndarray) -> list[str]:
        """The leading tastes, as a question tells them."""
        return [f"{value[:_CHARACTERS]} ({count} of {len(items)})" for value, count in self.tastes(items, LEADING)]

    def described(self, item: int, tastes: Mapping[str, int], *told: str | None) -> str:
        """A title with what a chain may say of it: attributes, first those among the commonest of some tastes that it
        has, and more in words."""
        shared = self._shared(item, tastes)[:_VALUES]
        values = sorted(self.values(item), key=lambda value: value not in shared)[:_VALUES]
        named = ", ".join(value[:_CHARACTERS] for value in values) if self.catalog.has_title(item) else ""
        parts = [part for part in (named, *told) if part]  # without a title, attributes are the name
        return f"{self.title(item)} ({'; '.join(parts)})" if parts else str(self.title(item))

    def comparison(self, history: np.ndarray, candidates: Sequence[int]) -> str:
        """What each candidate has in common with the leading tastes of the history."""
        sentences = []
        tastes = dict(self.tastes(history, LEADING))
        for item in candidates:
            if (title := self.title(item)) is None:
                continue
            shared = [value[:_CHARACTERS] for value in self._shared(item, tastes)[:2]]
            sentences.append(
                f"{title} shares {listed(shared)}." if shared else f"{title} shares none of the leading tastes."
            )
        return " ".join(sentences) or "The candidates have no description."

    def _shared(self, item: int, tastes: Mapping[str, int]) -> list[str]:
        """Attribute values of an item that are among some tastes, the commonest first."""
        return sorted((value for value in self.values(item) if value in tastes), key=lambda v: (-tastes[v], v))


class Rationales(Descriptions):
    """Facts about users and items, in words, none of them later than the moment that is asked for.

    Args:
        data: the events.
        rows: of the training part; no other event is read, nor one without a label: nobody knows how it ended.
        timed: whether events of different users can be compared by their timestamps. Sequence files have positions
            instead: there all training events of *other* users count, and a user's own before the moment.

    Raises:
        DataError: rows outside the table.
    """

    def __init__(self, data: Interactions, rows: np.ndarray, *, timed: bool) -> None:
        super().__init__(data.catalog)
        self.data, self.timed = data, timed
        rows = as_rows(rows, "rows", len(data), error=DataError)
        rows = rows[data.labels[rows] != UNLABELLED]
        self._by_user = Timeline(data.users, data.timestamps, data.num_users, rows)
        self._by_item = Timeline(data.items, data.timestamps, data.num_items, rows[data.labels[rows] == 1])

    def history(self, user: int, moment: int) -> np.ndarray:
        """Rows of a user's training events before a moment, oldest first."""
        return self._by_user.before(user, moment)

    def liked(self, user: int, moment: int) -> np.ndarray:
        """Items that a user liked before a moment, oldest first."""
        rows = self.history(user, moment)
        return self.data.items[rows[self.data.labels[rows] == 1]]

    def support(self, user: int, known: int, candidate: int, moment: int) -> tuple[int, int]:
        """How many other users liked an item, and how many of them a candidate too: both before the moment, in the
        training part."""
        first, second = self._likers(known, moment), self._likers(candidate, moment)
        first, second = first[first != user], second[second != user]
        return len(first), len(np.intersect1d(first, second, assume_unique=True))

    def evidence(self, user: int, history: np.ndarray, candidate: int, moment: int) -> str | None:
        """What other users' events say for a candidate: by the latest items of the history, the one with the largest
        share; None where none of them speaks for it."""
        best, title = self._best(user, history, candidate, moment), self.title(candidate)
        if best is None or title is None:
            return None
        known, others, common = best
        return f"Of {others} others who liked {known}, {common} liked {title}."

    def told(self, user: int, history: np.ndarray, candidate: int, moment: int) -> str | None:
        """The same in a few words, as a question says it beside the candidate."""
        best = self._best(user, history, candidate, moment)
        return None if best is None else others_liked(*best)

    def _best(self, user: int, history: np.ndarray, candidate: int, moment: int) -> tuple[str, int, int] | None:
        """Title of the item that speaks most for the candidate, its other likers, and how many of them liked both."""
        best = strongest(history, lambda item: self.support(user, item, candidate, moment))
        known = None if best is None else self.title(history[len(history) - 1 - best[0]])
        return None if best is None or known is None else (known, *best[1:])

    def _likers(self, item: int, moment: int) -> np.ndarray:
        """Distinct users who liked an item before the moment, ascending."""
        rows = self._by_item.before(int(item), moment) if self.timed else self._by_item.all(int(item))
        return np.unique(self.data.users[rows])


def others_liked(known: str, others: int, common: int) -> str:
    """What other users' likes say for a candidate.

    >>> others_liked("tea", 12, 5)
    '5 of 12 others who liked tea liked it'
    """
    return f"{common} of {others} others who liked {known} liked it"


def listed(parts: Sequence[str]) -> str:
    """Parts of a sentence.

    >>> listed(["tea", "books", "bread"])
    'tea, books and bread'
    """
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)
