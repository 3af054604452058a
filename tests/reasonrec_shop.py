"""A small catalogue with titles and kinds, users who walk through it, and the settings of a ReasonRec for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from walks import walks as random_walks

from reasonrec_fast.data import Interactions
from reasonrec_fast.models.classical import StackConfig
from reasonrec_fast.models.reasonrec import AgentConfig, ReasonRecConfig

USERS, ITEMS = 60, 24
STACK = StackConfig(
    tools=("DirectedItemKNN", "ItemKNN", "AttributeKNN"), candidates=6, depth=10, trees=20, min_leaf=5, leaves=7
)


def walks() -> Interactions:
    """Users who mostly walk on to the next item; items have a kind, by which the walks sometimes jump."""
    users, numbers = random_walks(np.random.default_rng(0), USERS, ITEMS, (5, 10))
    items = [f"i{number}" for number in numbers]
    kinds = {f"i{item}": (f"kind {item % 4}", "all") for item in range(ITEMS - 2)}
    return Interactions.from_columns(
        users, items, [1] * len(users), range(len(users)), attributes={"kind": kinds},
        titles={f"i{item}": f"Title {chr(65 + item)}" for item in range(ITEMS - 1)},
        extra_items=[f"i{item}" for item in range(ITEMS)],
    )  # fmt: skip


def small_config(backbone: Path) -> ReasonRecConfig:
    """Of two layers of a tiny language model."""
    agent = AgentConfig(
        backbone=str(backbone), layers=2, candidates=6, train_candidates=4, lora_rank=2, epochs=2.0, batch_users=4
    )
    return ReasonRecConfig(stack=STACK, agent=agent, k=2)
