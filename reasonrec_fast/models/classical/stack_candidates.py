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
    """Candidates of users whose next item is known, block by block."""

    def __init__(self) -> None:
        self._features: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []

    def add(self, items: np.ndarray, features: np.ndarray, targets: np.ndarray, *, hits_only: bool) -> None:
        """Add the users of a block.

        Args:
            items: candidates, ``[B, C]``, -1 for none.
            features: ``[B, C, F]``.
            targets: their next items, ``[B]``.
            hits_only: leave out users whose next item is no candidate: the trees cannot learn from them.
        """
        is_target = items == targets[:, None]
        column = np.where(is_target.any(1), is_target.argmax(1), -1)  # slots without an item are at the end of a row
        kept = column >= 0 if hits_only else (items >= 0).any(1)
        self._features.append(features[kept][items[kept] >= 0])
        self._sizes.append((items[kept] >= 0).sum(1))
        self._targets.append(column[kept])

    def examples(self) -> Examples | None:
        """What trees learn from; None where no target is a candidate."""
        sizes, targets = np.concatenate(self._sizes), np.concatenate(self._targets)
        hit = targets >= 0
        if not hit.any():
            return None
        features = np.concatenate(
            [part[np.repeat(column >= 0, size)] for part, size, column in
             zip(self._features, self._sizes, self._targets, strict=True)]
        )  # fmt: skip
        labels = np.zeros(len(features), dtype=np.int64)
        labels[np.cumsum(sizes[hit]) - sizes[hit] + targets[hit]] = 1
        return Examples.ordered(features, sizes[hit], labels)

    def logits(self, trees: Trees, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits of all candidates, ``[G, C]``, ``-inf`` for none, and the column of each target, -1 for none.

        Args:
            trees: whose raw scores are the logits.
            most: users at most, evenly spaced among those that were added.
        """
        sizes = np.concatenate(self._sizes)
        kept = np.zeros(len(sizes), dtype=bool)
        kept[:: max(-(-len(sizes) // most), 1)] = True
        result = np.full((int(kept.sum()), int(sizes[kept].max(initial=0))), -np.inf)
        inside = np.arange(result.shape[1]) < sizes[kept][:, None]
        rows = np.split(np.repeat(kept, sizes), np.cumsum([len(part) for part in self._features])[:-1])
        features = [part[of_part] for part, of_part in zip(self._features, rows, strict=True)]
        result[inside] = np.concatenate([trees.predict(part) for part in features])
        return result, np.concatenate(self._targets)[kept]
