"""What the agent reads of a user and the candidates: tastes, history, titles, attributes, evidence, tools' ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reasonrec_fast.data import Catalog, Histories
from reasonrec_fast.lm.layout import TokenGroup
from reasonrec_fast.models.reasonrec.config import AgentConfig, Task, TitleAgentConfig
from reasonrec_fast.models.reasonrec.observe import THOUGHT, SoftItem
from reasonrec_fast.models.reasonrec.words import ItemWords, strongest
from reasonrec_fast.prompts.tokens import TokenIds
from reasonrec_fast.training.sft import SupervisedGroup

_TASTE_CHARACTERS, _TASTE_TOKENS = 100, 16  # of an attribute value, which may be a whole description
_ALL_TASTES_TOKENS = 9 * _TASTE_TOKENS  # of eight values and the words around them
_AND_LIKED = ", and liked:\n"
_MORE_READ = 2  # titles of a training text beyond those of a prompt's history: what a candidate would be, and the first


def longest_prompt(config: AgentConfig, tools: int) -> int:
    """Tokens of a prompt, at most.

    Args:
        config: what is read, and how much of it.
        tools: whose ranks may be told.
    """
    item = config.title_tokens + 2 * config.soft_tokens
    suffix = item + 4 * config.attributes + 2 + 64 + 32 * tools + config.thoughts
    return 1 + 9 * _TASTE_TOKENS + 64 + config.history * (item + 8) + suffix


class CoLikes:
    """How many users liked two items, from everybody's histories.

    Args:
        histories: of all users.
        num_items: in the catalogue.
    """

    def __init__(self, histories: Histories, num_items: int) -> None:
        users = np.repeat(np.arange(histories.num_users), histories.lengths)
        pairs = np.unique(histories.items * max(histories.num_users, 1) + users)
        items = pairs // max(histories.num_users, 1)
        self._users = pairs - items * max(histories.num_users, 1)
        self._indptr = np.concatenate([[0], np.cumsum(np.bincount(items, minlength=num_items))])

    def likers(self, item: int) -> np.ndarray:
        """Users who liked an item, ascending."""
        return self._users[self._indptr[item] : self._indptr[item + 1]]

    def support(self, user: int, known: int, candidate: int) -> tuple[int, int]:
        """How many others than a user liked a known item, and how many of them a candidate too."""
        first = self.likers(known)
        first = first[first != user]
        return len(first), len(np.intersect1d(first, self.likers(candidate), assume_unique=True))

    def best(self, user: int, history: Sequence[int], candidate: int) -> tuple[int, int, int] | None:
        """Of the latest items of a history the one whose likers liked a candidate most often: its position from the
        end (0 is the last), its other likers, and how many of them liked the candidate; None where none did."""
        return strongest(history, lambda item: self.support(user, item, candidate))


class AgentPrompts(ItemWords):
    """Writes a user as a prefix, and each candidate as a suffix that ends where the agent answers.

    Nothing in them is an identifier or depends on how items are numbered.

    Args:
        catalog: titles and attributes of the items.
        tokenizer: of the language model.
        config: what is read, and how much of it.
        observed: items that have soft tokens, bool ``[I]``; texts have a
            :class:`~reasonrec_fast.models.reasonrec.observe.SoftItem` before their titles. None for no item.
    """

    def __init__(
        self, catalog: Catalog, tokenizer: Any, config: AgentConfig, observed: np.ndarray | None = None
    ) -> None:
        super().__init__(catalog)
        self._observed = frozenset() if observed is None else frozenset(np.flatnonzero(observed).tolist())
        self._config, self._ids = config, TokenIds(tokenizer)
        self._histories = Histories.from_lists([])
        self._likes = CoLikes(self._histories, len(catalog))

    def set_histories(self, histories: Histories, likes: CoLikes | None = None) -> None:
        """Everybody's histories: the users' own, and what others liked, unless that is counted already."""
        self._histories, self._likes = histories, CoLikes(histories, len(self.catalog)) if likes is None else likes

    def group(
        self,
        user: int,
        candidates: Sequence[int],
        task: Task = "sequential",
        ranks: Sequence[dict[str, int]] | None = None,
    ) -> TokenGroup:
        """Prefix and suffixes of a user's candidates.

        Args:
            user: index.
            candidates: indices of items.
            task: ``"direct"`` describes the user by tastes, and names no history.
            ranks: of each candidate, its rank by tool: what the tools say when they are consulted.
        """
        history = self._histories.of_user(user).tolist()
        suffixes = [
            self._suffix(user, history, item, task, None if ranks is None else ranks[number])
            for number, item in enumerate(candidates)
        ]
        return self._prefix(history, task), suffixes

    def _prefix(self, history: Sequence[int], task: Task) -> list[Any]:
        most = 8 if task == "direct" else 4
        named = [f"{value[:_TASTE_CHARACTERS]} {count}" for value, count in self.tastes(history, most)]
        told = self._ids.encode(f"Tastes: {', '.join(named) or 'unknown'}")[: _TASTE_TOKENS * (most + 1)]
        ids: list[Any] = [*self._ids.start, *told]
        if task == "sequential" and history:
            ids += self._ids.of("\nLiked, latest first:")
            for number, item in enumerate(history[::-1][: self._config.history], 1):
                ids += [*self._ids.of(f"\n{number}."), *self._seen(item), *self._title(item)]
        return [*ids, *self._ids.of("\nSuggested:")]

    def _seen(self, item: int) -> list[SoftItem]:
        return [SoftItem(item)] if item in self._observed else []

    def _title(self, item: int) -> tuple[int, ...]:
        return self._ids.of(" " + self.name(item))[: self._config.title_tokens]

    def _suffix(self, user: int, history: list[int], item: int, task: Task, ranks: dict[str, int] | None) -> list[Any]:
        ids: list[Any] = [*self._seen(item), *self._title(item)]
        if (values := self.values(item)[: self._config.attributes]) and self.catalog.has_title(item):
            ids += self._ids.of(f" ({', '.join(values)})")[: 4 * self._config.attributes + 2]
        if self._config.evidence:
            best = self._likes.best(user, history, item)
            ids += self._ids.of("." if best is None else self._liked(best, task))
        if ranks is not None:
            said = ", ".join(f"{name} {rank}" for name, rank in ranks.items())
            ids += self._ids.of(f" Ranks: {said}." if said else " No tool ranks it.")
        return [*ids, *self._ids.of(" Liked next:"), *([THOUGHT] if self._config.thoughts else [])]

    @staticmethod
    def _liked(best: tuple[int, int, int], task: Task) -> str:
        back, others, common = best
        named = f"who liked {back + 1}" if task == "sequential" else "alike"
        return f". {common} of {others} {named} liked it."


def introduction(ids: TokenIds) -> list[int]:
    """What comes before the titles of a history."""
    return [*ids.start, *ids.of("A customer liked, in this order:\n")]


def longest_titles(config: TitleAgentConfig, ids: TokenIds) -> int:
    """Tokens of a text of :class:`TitlePrompts`, at most.

    Args:
        config: what is read, and how much of it.
        ids: of the language model's tokenizer.
    """
    title = config.title_tokens + len(ids.of("\n"))
    tastes = len(ids.start) + _ALL_TASTES_TOKENS + len(ids.of(_AND_LIKED)) + title
    return max(tastes, len(introduction(ids)) + (config.history + _MORE_READ) * title)


class TitlePrompts(ItemWords):
    """Writes a user as the titles of their latest items, and each candidate as its title, a line each.

    Nothing in them is an identifier or depends on how items are numbered.

    Args:
        catalog: titles and attributes of the items; one without a title is named by attributes.
        tokenizer: of the language model.
        config: what is read, and how much of it.
    """

    def __init__(self, catalog: Catalog, tokenizer: Any, config: TitleAgentConfig) -> None:
        super().__init__(catalog)
        self._config, self._ids = config, TokenIds(tokenizer)
        self._histories = Histories.from_lists([])

    def set_histories(self, histories: Histories, likes: CoLikes | None = None) -> None:
        """Everybody's histories; who liked what is not read."""
        self._histories = histories

    def group(
        self,
        user: int,
        candidates: Sequence[int],
        task: Task = "sequential",
        ranks: Sequence[dict[str, int]] | None = None,
    ) -> TokenGroup:
        """Prefix and suffixes of a user's candidates.

        Args:
            user: index.
            candidates: indices of items.
            task: ``"direct"`` describes the user by tastes, and names no history.
            ranks: not read: a title is as likely whatever the tools say.
        """
        history = self._histories.of_user(user).tolist()
        prefix = introduction(self._ids)
        if task == "direct":
            named = ", ".join(f"{value[:_TASTE_CHARACTERS]} {count}" for value, count in self.tastes(history, 8))
            told = self._ids.encode(f"A customer likes {named or 'something'}")[:_ALL_TASTES_TOKENS]
            prefix = [*self._ids.start, *told, *self._ids.of(_AND_LIKED)]
        else:
            prefix += [token for item in history[-self._config.history :] for token in self.line(item)]
        return prefix, [self.line(item) for item in candidates]

    def line(self, item: int) -> tuple[int, ...]:
        """Tokens of an item's title and of the line's end."""
        return (*self._ids.of(self.name(item))[: self._config.title_tokens], *self._ids.of("\n"))

    def reading(self, user: int) -> SupervisedGroup:
        """The user's latest items as what a language model learns from: every title but the first."""
        items = self._histories.of_user(user)[-self._config.history - _MORE_READ :].tolist()
        titles = [self.line(item) for item in items]
        tokens = [token for title in titles for token in title]
        chosen = np.arange(len(tokens)) >= len(titles[0])
        return SupervisedGroup(introduction(self._ids), [tokens], [chosen.tolist()])
