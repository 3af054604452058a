"""Prompts as token ids: a prefix that a user's candidates share, and one suffix for each candidate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reasonrec_fast.data.interactions import Catalog, Interactions
from reasonrec_fast.models.optirag.evidence import Evidence, EvidenceBuilder
from reasonrec_fast.models.optirag.taste import TARGET_VALUES
from reasonrec_fast.models.optirag.template import LEVELS, Template
from reasonrec_fast.prompts import Section, TokenIds, fit_budget, item_title

_SHARED_ITEMS = 3
_SHARING_USERS = 10


@dataclass(frozen=True)
class Slate:
    """Requests of one user that share a prefix.

    Attributes:
        rows: index of each request among those that were given, int64 ``[n]``.
        prefix: token ids before every candidate.
        suffixes: token ids of each candidate, in the order of ``rows``.
    """

    rows: np.ndarray
    prefix: list[int]
    suffixes: list[list[int]]

    @property
    def num_tokens(self) -> int:
        """Tokens of the prefix and of all suffixes."""
        return len(self.prefix) + sum(map(len, self.suffixes))


class PromptBuilder:
    """Writes the prompts of requests of one table of interactions.

    A prefix holds what was known strictly before the first request of its slate; a suffix, what was known strictly
    before its own request. Items have titles and attributes there, and no identifiers.

    Args:
        evidence: the builder of the evidence that the prompts describe.
        template: of the prompts.
        ids: token ids of texts.
        prefix_tokens, suffix_tokens: budgets. The oldest history is dropped first; a title that is too long is cut.
        slate_size: most requests that share a prefix.
        tell_similar: whether prompts describe what similar users like.
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
        """Prompts of the requests ``rows``, grouped into slates by user and in time order.

        Args:
            rows: rows of the interactions, int64 ``[N]``.
            evidence: of the requests, in the same order.
            alone: only requests of one moment share a prefix, so that no prompt depends on another request.
            wanted: whose prompts are written, bool ``[N]``; by default all. Slates are formed of all requests, so that
                a prompt does not depend on which others are wanted.
        """
        data, slates = self.interactions, []
        order = np.lexsort((rows, data.timestamps[rows], data.users[rows]))
        keys = [data.users[rows][order], *([data.timestamps[rows][order]] if alone else [])]
        begins = np.any([np.diff(key) != 0 for key in keys], axis=0)
        for group in np.split(order, np.flatnonzero(begins) + 1):
            for start in range(0, len(group), self.slate_size):
                indices = group[start : start + self.slate_size]
                first = indices[0]
                if wanted is not None:
                    indices = indices[wanted[indices]]
                    if not len(indices):
                        continue
                prefix = self._prefix(int(rows[first]), evidence.neighbours[first])
                suffixes = [self._suffix(int(rows[i]), evidence.votes[i], evidence.taste[i]) for i in indices]
                slates.append(Slate(indices, prefix, suffixes))
        return slates

    def _prefix(self, row: int, neighbours: np.ndarray) -> list[int]:
        data, template = self.interactions, self.template
        moment = int(data.timestamps[row])
        history = self.evidence.histories.before(int(data.users[row]), moment)
        if len(history) == 0:
            return [*self._start, *self._ids(template.new_user)]
        likes = int(data.labels[history].sum())
        summary = template.fill("known_user", events=len(history), rate=_percent(likes, len(history)))
        head = [*self._start, *self._ids(summary)]
        shared = self._shared(neighbours, moment, set(data.items[history].tolist())) if self.tell_similar else []
        tail = self._listing(template.shared, [name for item in shared if (name := self._name(item))])
        budget = self.prefix_tokens - len(head) - len(tail)
        names: tuple[list[str], list[str]] = ([], [])  # of disliked and of liked items, newest first
        body: list[int] = []
        for event in history[::-1]:
            name = self._name(int(data.items[event]))
            if not name:
                continue
            names[data.labels[event]].append(name)
            longer = [*self._listing(template.liked, names[1]), *self._listing(template.disliked, names[0])]
            if len(longer) > budget:
                break
            body = longer
        return [*head, *body, *tail]

    def _suffix(self, row: int, votes: np.ndarray, taste: np.ndarray) -> list[int]:
        template, item = self.template, int(self.interactions.items[row])
        similar = "" if not self.tell_similar else template.no_votes
        if self.tell_similar and votes[1]:
            similar = template.fill("votes", likes=votes[0], events=votes[1])
        tail = [
            *self._ids(self._taste(item, taste)),
            *self._ids(similar),
            *self._ids(template.question),
            *self._ids(self._overall(taste)),
        ]
        ids = self._ids(self._target(item))
        if len(ids) + len(tail) <= self.suffix_tokens:
            return [*ids, *tail]
        sections = [Section("target", [ids], "cut_end"), Section("tail", [tail], "cut_start", priority=1)]
        fitted = fit_budget(sections, self.suffix_tokens).text
        assert isinstance(fitted, list)
        return fitted

    def _target(self, item: int) -> str:
        """The target's title and attributes."""
        template, catalog = self.template, self.interactions.catalog
        title = item_title(catalog, item)
        attributes = [
            template.value_text(name, value)
            for name in template.target_attributes
            for value in _values(catalog, name, item)
        ]
        if title is None and not attributes:
            return template.unknown_target
        listed = "".join(f", {value}" for value in attributes[:TARGET_VALUES])
        return template.fill("target", title=template.untitled if title is None else title, attributes=listed)

    def _taste(self, item: int, taste: np.ndarray) -> str:
        """The target's attribute values, each with how much the user likes it, then how much similar users do."""
        values = _values(self.interactions.catalog, self.template.taste_attribute, item)[:TARGET_VALUES]
        if not values:
            return ""
        own, similar = ([self._level(lift) for lift in column] for column in taste[: len(values)].T)
        text = self.template.fill("taste", values=", ".join(map(" ".join, zip(values, own, strict=True))))
        return text + (self.template.fill("taste_shared", levels=", ".join(similar)) if self.tell_similar else "")

    def _overall(self, taste: np.ndarray) -> str:
        """The level at which similar users like items with the target's values, and the user's at the very end, since
        the heads read the last token."""
        own, shared = (
            self._level(float(column[~np.isnan(column)].mean()) if (~np.isnan(column)).any() else np.nan)
            for column in taste.T
        )
        text = self.template.fill("overall_shared", shared=shared) if self.tell_similar else ""
        return text + self.template.fill("overall", own=own)

    def _level(self, lift: float) -> str:
        levels = self.template.levels
        return levels[-1] if np.isnan(lift) else levels[int(np.searchsorted(LEVELS, lift))]

    def _shared(self, neighbours: np.ndarray, moment: int, seen: set[int]) -> list[int]:
        """The items that most of the nearest users liked before the moment, without those that the user has seen."""
        index = self.evidence.index
        data, moment = index.events, int(self.evidence.in_index(np.int64(moment)))
        counts: dict[int, int] = {}
        for user in neighbours[:_SHARING_USERS]:
            if user < 0:
                break
            for event in index.of_user(int(user), moment):
                item = int(data.items[event])
                if data.labels[event] == 1 and item not in seen:
                    counts[item] = counts.get(item, 0) + 1
        return sorted(counts, key=lambda item: (-counts[item], item))[:_SHARED_ITEMS]

    def _name(self, item: int) -> str:
        """What a list calls an item: its title, else its values of the taste attribute; empty without either."""
        catalog = self.interactions.catalog
        title = item_title(catalog, item)
        if title is not None:
            return title
        return ", ".join(_values(catalog, self.template.taste_attribute, item)[:TARGET_VALUES])

    def _listing(self, text: str, names: list[str]) -> list[int]:
        """Token ids of a list of items. Each name is encoded by itself, so that its ids are cached."""
        if not names:
            return []
        before, after = text.split("{items}")
        ids: list[int] = [*self._ids(before)]
        for index, name in enumerate(names):
            ids += self._ids((self.template.separator if index else "") + " " + name)
        return [*ids, *self._ids(after)]


def _values(catalog: Catalog, attribute: str, item: int) -> tuple[str, ...]:
    column = catalog.attributes.get(attribute)
    return () if column is None else column[item]


def _percent(part: int, whole: int) -> int:
    return round(100 * part / whole)
