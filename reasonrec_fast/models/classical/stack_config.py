"""The settings of a stack, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from reasonrec_fast.models.classical.stack_tools import ToolSpec
from reasonrec_fast.settings import Count, Positive, ShareBelowOne, Whole, check_settings


@dataclass(frozen=True)
class StackConfig:
    """Hyper-parameters.

    Attributes:
        tools: models, each a name or a table of ``kind`` and settings
            (:class:`~reasonrec_fast.models.classical.stack_tools.ToolSpec`). None names all of
            :data:`~reasonrec_fast.models.classical.stack_tools.DEFAULT_TOOLS` that the data can carry.
        candidates: items that each tool nominates; the trees order their union.
        depth: ranks of a tool are told apart up to here.
        trees, patience: trees at most, and trees without less loss on validation before stopping.
        learning_rate, leaves, min_leaf: of the trees; of few candidates a leaf needs a twentieth of them at most.
        ensemble_size: models of trees with different seeds, whose logits are averaged; so many times the trees.
        users: whose last training events the trees learn, and whose first validation events stop and calibrate them, at
            most; drawn where there are more.
        tool_dropout: share of the users of training for whom a tool is taken to be missing, each tool by itself, so
            that the trees know what to do without it.
        tool_seconds: that a tool may take for a block of users when the stack is served; then it is left out.
        seed: of tools and trees.
    """

    tools: tuple[str | dict[str, Any], ...] = ()
    candidates: Count = 50
    depth: Count = 200
    trees: Count = 1000
    patience: Count = 50
    learning_rate: Positive = 0.1
    leaves: Count = 15
    min_leaf: Count = 200
    ensemble_size: Count = 1
    users: Count = 50_000
    tool_dropout: ShareBelowOne = 0.02
    tool_seconds: Positive | None = None
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)
        names = [spec.name for spec in self.specs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"tools: expected different names; got {name!r} twice")

    @property
    def specs(self) -> list[ToolSpec]:
        """The models, in the order of their features; empty for those that the data can carry."""
        return [ToolSpec.parse(entry) for entry in self.tools]


class StackRanking(NamedTuple):
    """The best candidates of ``B`` users, best first; -1, ``-inf``, 0 and NaN where there are no more than so many.

    Attributes:
        items: indices, int64 ``[B, k]``.
        logits: of the softmax over all candidates of a user, float64 ``[B, k]``.
        probabilities: that an item is the user's next, calibrated on validation, float64 ``[B, k]``.
        features: float32 ``[B, k, F]``; their names are :attr:`Stack.feature_names`.
        entropy: of the softmax over all candidates, in nats, float64 ``[B]``.
        candidates: how many there are, int64 ``[B]``.
        left_out: tools that did not answer, and why; their features are NaN.
    """

    items: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    features: np.ndarray
    entropy: np.ndarray
    candidates: np.ndarray
    left_out: dict[str, str]
