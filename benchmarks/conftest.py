"""Inputs that the operator benchmarks share."""

import numpy as np
import pytest
import torch

from reasonrec_fast import InteractionGraph


@pytest.fixture(scope="session")
def graph() -> InteractionGraph:
    """10,000 users, 10,000 items, about 270,000 edges, items drawn by a power law."""
    generator = np.random.default_rng(0)
    users = generator.integers(0, 10_000, 300_000)
    items = np.minimum(generator.pareto(1.1, 300_000) * 100, 9_999).astype(np.int64)
    return InteractionGraph.from_edges(users, items, num_users=10_000, num_items=10_000)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
