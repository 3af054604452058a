"""Settings that train in a moment, on the tiny language model of all tests."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from reasonrec_fast.models.optirag import OptiRAGConfig
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig


@pytest.fixture(scope="session")
def config(tiny_backbone) -> OptiRAGConfig:
    return OptiRAGConfig(
        backbone=str(tiny_backbone),
        template="films",
        prefix_tokens=300,
        suffix_tokens=200,
        slate_size=4,
        num_neighbours=5,
        exits=(1, 2),
        samples=96,
        warm_start_steps=20,
        folds=2,
        retriever=EmbeddingConfig(dim=8, steps=10, batch=128),
    )


@pytest.fixture
def files(events, config, tmp_path) -> Path:
    """Events, items and settings as files."""
    table = pd.DataFrame(
        {
            "user": [events.user_ids[u] for u in events.users],
            "item": [events.catalog.ids[i] for i in events.items],
            "label": events.labels,
            "timestamp": events.timestamps,
        }
    )
    table.to_csv(tmp_path / "events.csv", index=False)
    items = pd.DataFrame(
        {
            "id": events.catalog.ids,
            "title": events.catalog.titles,
            "genres": ["|".join(g) for g in events.catalog.attributes["genres"]],
        }
    )
    items.to_csv(tmp_path / "items.csv", index=False)
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    return tmp_path
