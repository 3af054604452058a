"""A tiny language model with random weights, and settings that train in a moment."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reasonrec_fast.models.optirag import OptiRAGConfig
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> Path:
    """A folder with a four-layer Llama and a byte tokenizer."""
    folder = tmp_path_factory.mktemp("backbone")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate(["<s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
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
