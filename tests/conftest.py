"""Shared fixtures. Without a GPU the Triton kernels run in Triton's interpreter."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest

from reasonrec_fast.data import Interactions

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def quiet_logger() -> Iterator[None]:
    """What a command says of its messages holds for its own test alone."""
    logger = logging.getLogger("reasonrec_fast")
    before = logger.level, list(logger.handlers)
    yield
    logger.setLevel(before[0])
    logger.handlers[:] = before[1]


@pytest.fixture
def shared_data() -> Path:
    """Data sets that lie beside a development checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the development data in {SHARED_DATA.parent.name}/{SHARED_DATA.name}")
    return SHARED_DATA


@pytest.fixture
def events() -> Interactions:
    """600 random events of 20 users on 40 films with genres, in time order."""
    generator = np.random.default_rng(0)
    films = [f"f{i}" for i in range(40)]
    genres = ("Drama", "Comedy", "Horror")
    return Interactions.from_columns(
        [f"u{u}" for u in generator.integers(0, 20, 600)],
        [films[i] for i in generator.integers(0, 40, 600)],
        generator.integers(0, 2, 600).tolist(),
        np.sort(generator.integers(0, 10_000, 600)).tolist(),
        titles={film: f"Film {film}" for film in films},
        attributes={"genres": {film: (genres[i % 3],) for i, film in enumerate(films)}},
    )
