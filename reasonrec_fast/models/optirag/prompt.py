"""Prompts as token ids: a prefix that a user's candidates share, and one suffix a candidate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reasonrec_fast.data.interactions import Catalog, Interactions
from reasonrec_fast.models.optirag.evidence import Evidence, EvidenceBuilder
from reasonrec_fast.models.optirag.taste import TARGET_VALUES
from reasonrec_fast.models.optirag.template import LEVELS, Template
from reasonrec_fast.prompts import Section, TokenIds, fit_budget

_SHARED_ITEMS = 3


@dataclass(frozen=True)
class Slate:
    """Requests of one user that share a prefix.

    Attributes:
        rows: places of the requests in the list that was given.
        prefix: token ids before every candidate.
        suffixes: token ids of each candidate, in the order of ``rows``.
    """

    rows: np.ndarray
    prefix: list[int]
    suffixes: list[list[int]]

    @property
    def num_tokens(self) -> int:
        return len(self.prefix) + sum(map(len, self.suffixes))


class PromptBuilder:
    """Writes prompts for the requests of one table of interactions.

    A prefix tells what was known strictly before the first request of its slate; a suffix, before its own request.

    Args:
        evidence: the builder whose evidence the prompts tell.
        template: the wording.
        ids: token ids of texts.
        prefix_tokens, suffix_tokens: budgets. The oldest history is dropped first; an overlong title is cut.
        slate_size: most requests that share a prefix.
        tell_similar: False leaves out what similar users share and say.
    """

    def __init__(
        self,
        evidence: EvidenceBuilder,
        template: Template,
        ids: TokenIds,
        *,
        prefix_tokens: int = 232,
        suffix_tokens: int = 24,
        slate_size: int = 32,
        tell_similar: bool = True,
    ) -> None:
        self.evidence = evidence
        self.interactions: Interactions = evidence.interactions
        self.template = template
        self.prefix_tokens, self.suffix_tokens, self.slate_size = prefix_tokens, suffix_tokens, slate_size
        self.tell_similar = tell_similar
        self._start, self._ids = ids.start, ids.of

    def slates(
        self, rows: np.ndarray, evidence: Evidence, *, alone: bool = False, wanted: np.ndarray | None = None
    ) -> list[Slate]:
        """Prompts of the requests ``rows``, grouped by user in time order into slates.

        Args:
            rows: rows of the interactions.
            evidence: theirs, in the same order.
            alone: only requests of one moment share a prefix, so that no prompt depends on another request.
            wanted: requests whose prompts are written, bool ``[N]``; all by default. The others are left out of the
                slates of all, so that a prompt does not depend on who else is wanted.
        """
        data, slates = self.interactions, []
        order = np.lexsort((rows, data.timestamps[rows], data.users[rows]))
        keys = [data.users[rows][order], *([data.timestamps[rows][order]] if alone else [])]
        new = np.any([np.diff(key) != 0 for key in keys], axis=0)
        for places in np.split(order, np.flatnonzero(new) + 1):
            for start in range(0, len(places), self.slate_size):
                chosen = places[start : start + self.slate_size]
                first = chosen[0]
                if wanted is not None:
                    chosen = chosen[wanted[chosen]]
                    if not len(chosen):
                        continue
                prefix = self._prefix(int(rows[first]), evidence.neighbours[first])
                suffixes = [self._suffix(int(rows[p]), evidence.votes[p], evidence.taste[p]) for p in chosen]
                slates.append(Slate(chosen, prefix, suffixes))
        return slates

    def _prefix(self, row: int, neighbours: np.ndarray) -> list[int]:
        data, words = self.interactions, self.template
        moment = int(data.timestamps[row])
        history = self.evidence.histories.before(int(data.users[row]), moment)
        if len(history) == 0:
            return [*self._start, *self._ids(words.new_user)]
        likes = int(data.labels[history].sum())
        head = [
            *self._start,
            *self._ids(words.known_user.format(events=len(history), rate=_percent(likes, len(history)))),
        ]
        shared = self._shared(neighbours, moment, set(data.items[history].tolist())) if self.tell_similar else []
        tail = self._listing(words.shared, shared)
        budget = self.prefix_tokens - len(head) - len(tail)
        chosen: tuple[list[int], list[int]] = ([], [])  # items disliked, liked; newest first
        body: list[int] = []
        for event in history[::-1]:
            chosen[data.labels[event]].append(int(data.items[event]))
            longer = [*self._listing(words.liked, chosen[1]), *self._listing(words.disliked, chosen[0])]
            if len(longer) > budget:
                break
            body = longer
        return [*head, *body, *tail]

    def _suffix(self, row: int, votes: np.ndarray, taste: np.ndarray) -> list[int]:
        data, words = self.interactions, self.template
        item, catalog = int(data.items[row]), data.catalog
        told = "" if not self.tell_similar else words.no_votes
        if self.tell_similar and votes[1]:
            told = words.votes.format(likes=votes[0], events=votes[1])
        tail = [
            *self._ids(self._taste(item, taste)),
            *self._ids(told),
            *self._ids(words.question),
            *self._ids(self._overall(taste)),
        ]
        attributes = [
            words.words(name, value) for name in words.target_attributes for value in _values(catalog, name, item)
        ]
        known = catalog.titles[item] != catalog.ids[item] or attributes
        described = "".join(f", {value}" for value in attributes[:TARGET_VALUES])
        target = words.target.format(title=self._title(item), attributes=described) if known else words.unknown_target
        ids = self._ids(target)
        if len(ids) + len(tail) <= self.suffix_tokens:
            return [*ids, *tail]
        sections = [Section("target", [ids], "cut_end"), Section("tail", [tail], "cut_start", priority=1)]
        fitted = fit_budget(sections, self.suffix_tokens).text
        assert isinstance(fitted, list)
        return fitted

    def _taste(self, item: int, taste: np.ndarray) -> str:
        """The target's attribute values, each with how the user likes it, then how similar users do."""
        words = self.template
        values = _values(self.interactions.catalog, words.taste_attribute, item)[:TARGET_VALUES]
        if not values:
            return ""
        level = [[self._level(lift) for lift in column] for column in taste[: len(values)].T]
        told = words.taste.format(values=", ".join(map(" ".join, zip(values, level[0], strict=True))))
        return told + (words.taste_shared.format(levels=", ".join(level[1])) if self.tell_similar else "")

    def _overall(self, taste: np.ndarray) -> str:
        """One word for how similar users like items with the target's values, and, as the very last, one for the user:
        the heads read the last token."""
        own, shared = (
            self._level(float(column[~np.isnan(column)].mean()) if (~np.isnan(column)).any() else np.nan)
            for column in taste.T
        )
        told = self.template.overall_shared.format(shared=shared) if self.tell_similar else ""
        return told + self.template.overall.format(own=own)

    def _level(self, lift: float) -> str:
        words = self.template.levels
        return words[-1] if np.isnan(lift) else words[int(np.searchsorted(LEVELS, lift))]

    def _shared(self, neighbours: np.ndarray, moment: int, seen: set[int]) -> list[int]:
        """Items that most of the nearest users liked before the moment and that the user has not met."""
        index = self.evidence.index
        data, moment = index.events, int(self.evidence.in_index(np.int64(moment)))
        counts: dict[int, int] = {}
        for user in neighbours[:10]:
            if user < 0:
                break
            for event in index.of_user(int(user), moment):
                item = int(data.items[event])
                if data.labels[event] == 1 and item not in seen:
                    counts[item] = counts.get(item, 0) + 1
        return sorted(counts, key=lambda item: (-counts[item], item))[:_SHARED_ITEMS]

    def _title(self, item: int) -> str:
        return natural_title(self.interactions.catalog.titles[item])

    def _listing(self, words: str, items: list[int]) -> list[int]:
        if not items:
            return []
        before, after = words.split("{items}")
        listed: list[int] = [*self._ids(before)]
        for place, item in enumerate(items):
            listed += self._ids((self.template.separator if place else "") + " " + self._title(item))
        return [*listed, *self._ids(after)]


def _values(catalog: Catalog, attribute: str, item: int) -> tuple[str, ...]:
    column = catalog.attributes.get(attribute)
    return () if column is None else column[item]


def _percent(part: int, whole: int) -> int:
    return round(100 * part / whole)


def natural_title(title: str) -> str:
    """A catalogue title in reading order.

    >>> natural_title("Matrix, The")
    'The Matrix'
    """
    name, comma, article = title.rpartition(", ")
    return f"{article} {name}" if comma and article in ("The", "A", "An") else title
