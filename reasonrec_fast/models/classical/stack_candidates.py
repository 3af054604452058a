"""The toolbox of a stack: its tools' views of users, their candidates, and the features of both."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch

from reasonrec_fast.data import DataError, Histories
from reasonrec_fast.early_exit.trees import Trees
from reasonrec_fast.models.classical.stack_features import feature_names, features
from reasonrec_fast.models.classical.stack_items import ItemFacts
from reasonrec_fast.models.classical.stack_scores import (
    Excluded,
    View,
    nominations,
    padded,
    standardised,
)
from reasonrec_fast.models.classical.stack_tools import ModelTool, Tool
from reasonrec_fast.models.classical.stack_trees import Examples

_logger = logging.getLogger("reasonrec_fast")


class Views(NamedTuple):
    """What the tools say about ``B`` users.

    Attributes:
        views: by name, in the order of the tools; None for those of a tool that gave no answer.
        excluded: items that are no candidates.
        histories: of the users.
        left_out: tools that gave no answer, and why.
    """

    views: dict[str, View | None]
    excluded: Excluded
    histories: Histories
    left_out: dict[str, str]


class Toolbox:
    """Fitted tools, and the facts of the items they score.

    Args:
        tools: in the order of their features.
        facts: of the items.
        nominated: items that each tool nominates.
        depth: ranks are told apart up to here.
        device: of the scores.
    """

    def __init__(
        self, tools: Iterable[Tool], facts: ItemFacts, *, nominated: int, depth: int, device: torch.device
    ) -> None:
        self.tools, self.facts, self.device = list(tools), facts, device
        self._nominated, self._depth = nominated, max(depth, nominated + 1)
        self.histories = Histories.from_lists([])
        self._warned: set[str] = set()

    @property
    def view_names(self) -> list[str]:
        return [view for tool in self.tools for view in tool.views]

    @property
    def vectors(self) -> torch.Tensor | None:
        """Vectors of the items' titles, from the first tool that has them."""
        of_tools = (tool.item_vectors() for tool in self.tools if isinstance(tool, ModelTool))
        return next((vectors for vectors in of_tools if vectors is not None), None)

    @property
    def feature_names(self) -> list[str]:
        return feature_names(self.view_names, self.facts, self.vectors is not None)

    def set_histories(self, histories: Histories) -> None:
        self.histories = histories
        for tool in self.tools:
            tool.set_histories(histories)

    def move(self, device: torch.device, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Move the tools to another device, by what :meth:`torch.nn.Module.to` does to a tensor."""
        self.device = device
        for tool in self.tools:
            tool.apply(function)

    def replace(self, tool: Tool) -> None:
        """Put a function in the place of the one of its name.

        Raises:
            ValueError: no function has that name.
        """
        functions = [known.name for known in self.tools if not isinstance(known, ModelTool)]
        if tool.name not in functions:
            raise ValueError(f"name: expected one of the functions of the fit, {functions}; got {tool.name!r}")
        tool.set_histories(self.histories)
        self.tools = [tool if known.name == tool.name else known for known in self.tools]

    def views(
        self,
        users: np.ndarray,
        exclude: Histories,
        *,
        seconds: float | None = None,
        strict: bool = False,
        dropped: np.ndarray | None = None,
    ) -> Views:
        """Ask all tools.

        Args:
            users: ``[B]``.
            exclude: items that each is not to get, of ``B`` rows.
            seconds: that a tool may take.
            strict: whether a tool that fails is an error rather than left out.
            dropped: tools taken to be missing for a user, bool ``[B, T]``.

        Raises:
            DataError: with ``strict``, a tool that fails.
        """
        items = len(self.facts.counts)
        excluded = Excluded.of(exclude, items, self.device)
        views: dict[str, View | None] = {}
        left_out: dict[str, str] = {}
        for number, tool in enumerate(self.tools):
            answer = tool.answer(users, items, seconds)
            if answer.reason:
                if strict:
                    raise DataError(f"tools: expected scores from {tool.name}; got {answer.reason}")
                left_out[tool.name] = answer.reason
                if tool.name not in self._warned:  # once, and not for every block of users
                    self._warned.add(tool.name)
                    _logger.warning("tool %s is left out: %s", tool.name, answer.reason)
                views |= dict.fromkeys(tool.views)
                continue
            for name, scores in zip(tool.views, answer.scores, strict=True):
                scores = scores.to(self.device)
                if dropped is not None:
                    gone = torch.from_numpy(dropped[:, number, None]).to(self.device)
                    scores = scores.masked_fill(gone, torch.nan)
                views[name] = standardised(scores, excluded, self._depth)
        return Views(views, excluded, self.histories.select(users), left_out)

    def candidates(self, views: Views) -> np.ndarray:
        """Items that a tool nominates, int64 ``[B, C]``, -1 for no more; where these are fewer than a tool may
        nominate, popular items too."""
        mask = torch.zeros_like(views.excluded.mask)
        for view in views.views.values():
            if view is not None:
                mask |= nominations(view, self._nominated)
        mask &= ~views.excluded.mask
        short = (mask.sum(1) < self._nominated).nonzero()[:, 0]
        if len(short):
            counts = torch.from_numpy(self.facts.counts).to(self.device).expand(len(short), -1)
            excluded = views.excluded.select(short)
            popular = standardised(counts, excluded, self._depth)
            mask[short] |= nominations(popular, self._nominated) & ~excluded.mask
        return padded(mask)

    def features(self, items: np.ndarray, views: Views) -> np.ndarray:
        """Features of candidates ``[B, C]``, float32 ``[B, C, F]``."""
        return features(items, views.views, views.histories, self.facts, self.vectors, self._nominated)

    def with_events(self, histories: Histories, tools: Iterable[Tool]) -> Toolbox:
        """The same with other tools and the popularity of other histories; these become the users' histories."""
        box = Toolbox(
            tools, self.facts.with_events(histories), nominated=self._nominated, depth=self._depth, device=self.device
        )
        box.set_histories(histories)
        return box


class Groups:
    """Candidates of users whose next item is known, block by block.

    Args:
        every: of the users, one in so many is kept for :meth:`logits`, whether or not its next item is a candidate; 0
            for none.
    """

    def __init__(self, every: int = 0) -> None:
        self._every, self._added = every, 0
        self._features: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []
        self._spaced: list[np.ndarray] = []

    def add(self, items: np.ndarray, features: np.ndarray, targets: np.ndarray) -> None:
        """Add the users of a block. Features are large: those of a user whom neither :meth:`examples` nor
        :meth:`logits` asks for are not kept.

        Args:
            items: candidates, ``[B, C]``, -1 for none.
            features: ``[B, C, F]``.
            targets: their next items, ``[B]``.
        """
        is_target = items == targets[:, None]
        column = np.where(is_target.any(1), is_target.argmax(1), -1)  # slots without an item are at the end of a row
        some = (items >= 0).any(1)
        number = self._added + np.cumsum(some) - 1
        self._added += int(some.sum())
        spaced = some & (number % self._every == 0) if self._every else np.zeros_like(some)
        kept = (column >= 0) | spaced
        self._features.append(features[kept][items[kept] >= 0])
        self._sizes.append((items[kept] >= 0).sum(1))
        self._targets.append(column[kept])
        self._spaced.append(spaced[kept])

    def examples(self) -> Examples | None:
        """What trees learn from; None where no target is a candidate."""
        hits = [targets >= 0 for targets in self._targets]
        if not any(hit.any() for hit in hits):
            return None
        sizes, targets = (self._users_of(values, hits) for values in (self._sizes, self._targets))
        features = np.concatenate(self._rows_of(hits))
        labels = np.zeros(len(features), dtype=np.int64)
        labels[np.cumsum(sizes) - sizes + targets] = 1
        return Examples.ordered(features, sizes, labels)

    def logits(self, trees: Trees) -> tuple[np.ndarray, np.ndarray]:
        """Logits of all candidates of the users that are kept for it, ``[G, C]``, ``-inf`` for none, and the column of
        each target, -1 for none.

        Args:
            trees: whose raw scores are the logits.
        """
        sizes, targets = (self._users_of(values, self._spaced) for values in (self._sizes, self._targets))
        result = np.full((len(sizes), int(sizes.max(initial=0))), -np.inf)
        inside = np.arange(result.shape[1]) < sizes[:, None]
        result[inside] = np.concatenate([trees.predict(part) for part in self._rows_of(self._spaced)])
        return result, targets

    @staticmethod
    def _users_of(values: list[np.ndarray], chosen: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([part[rows] for part, rows in zip(values, chosen, strict=True)])

    def _rows_of(self, chosen: list[np.ndarray]) -> list[np.ndarray]:
        """Features of the candidates of some users, block by block."""
        blocks = zip(self._features, self._sizes, chosen, strict=True)
        return [features[np.repeat(users, sizes)] for features, sizes, users in blocks]
