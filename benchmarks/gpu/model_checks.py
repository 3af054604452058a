"""Checks the early-exit engine and OptiRAG on the GPU against the CPU, with random weights; part of ``checks``."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.device import Cuda
from reasonrec_fast.benchmarking.stored import random_ranker, spread_policy, stored_work
from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.lm.prefix_cache import PrefixCache

ENGINE = {"slates": "slates", "exits": "slates", "cache": "slates", "texts": "texts", "long": "long"}
"""Stored prompts of each check."""
TOLERANCE = {torch.float32: (2e-4, 2e-3), torch.bfloat16: (0.02, 0.2)}
"""Tolerance of the mean and the largest difference of probabilities."""


def units(device: Cuda) -> list[str]:
    names = [f"engine/{kind}/{dtype}" for kind in ENGINE for dtype in ("float32", "bfloat16")]
    return [*names, "optirag/predict/float32"]


def run(name: str, kind: str, dtype: torch.dtype, device: Cuda) -> dict[str, Any]:
    """Check one unit.

    Raises:
        AssertionError: scores differ.
    """
    return _optirag(device) if name == "optirag" else _engine(kind, dtype, device)


def _engine(kind: str, dtype: torch.dtype, device: Cuda) -> dict[str, Any]:
    work = stored_work(ENGINE[kind], groups=16 if kind == "texts" else 2, tiny=device.tiny)
    # The reference computes in float32 with the GPU's rounded weights.
    exact = random_ranker("cpu", dtype, tiny=device.tiny).float()
    model = random_ranker(device.kind, dtype, tiny=device.tiny)
    policy = spread_policy(exact, work) if kind == "exits" else None
    expected = exact.predict(work.groups, work.features, policy)
    assert expected.probability.std() > 0.05, "the scores are all alike: nothing would be seen of an error"
    cache = PrefixCache(2**30) if kind == "cache" else None
    worst = 0.0
    # The first run is eager, the second captures the CUDA graphs of the layers, the third replays them.
    for _ in range(3 if device.kind == "cuda" and cache is None else 1):
        result = model.predict(work.groups, work.features, policy, cache=cache)
        same_depth = result.depth.cpu() == expected.depth
        # Rounding to bfloat16 changes the exit of some rows.
        min_share = 1.0 if dtype == torch.float32 else 0.7
        assert same_depth.float().mean() >= min_share, (
            f"depths: {int((~same_depth).sum())} of {len(same_depth)} rows left at another exit"
        )
        worst = max(worst, _compare(result.probability.cpu()[same_depth], expected.probability[same_depth], dtype))
    if cache is not None:
        cached = model.predict(work.groups, work.features, cache=cache)
        assert cache.hits == len(work.groups), f"cache: expected {len(work.groups)} hits; got {cache.hits}"
        worst = max(worst, _compare(cached.probability.cpu(), expected.probability, dtype))
    _check_exits(model, work.groups, work.features)
    return {"worst": worst, "rows": work.rows, "tokens": work.tokens}


def _check_exits(model: EarlyExitModel, groups: Any, dense_features: torch.Tensor) -> None:
    """``all_exits``, which training uses, gives finite statistics for every exit."""
    with torch.inference_mode():
        statistics = model.all_exits(groups, dense_features)
    assert len(statistics) == len(model.exits)
    assert all(bool(torch.isfinite(exit_statistics.confidence).all()) for exit_statistics in statistics)


def _compare(probabilities: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> float:
    mean, largest = TOLERANCE[dtype]
    difference = (probabilities - expected).abs()
    worst = max(float(difference.mean()) / mean, float(difference.max()) / largest)
    assert worst <= 1.0, (
        f"probabilities: off by {float(difference.mean()):.2g} on average and {float(difference.max()):.2g} at most; "
        f"expected {mean:g} and {largest:g}"
    )
    return worst


def _optirag(device: Cuda) -> dict[str, Any]:
    """A tiny OptiRAG gives equal predictions on CPU and GPU, whichever of them it was fitted on."""
    from reasonrec_fast.data import split_by_time
    from reasonrec_fast.models.optirag import OptiRAG

    events, worst = _events(), 0.0
    parts = split_by_time(events)
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder, "backbone"))
        for index, (fit_device, other_device) in enumerate((("cpu", device.kind), (device.kind, "cpu"))):
            model = OptiRAG(config, device=fit_device).fit(events, parts.train, parts.validation)
            model.save_pretrained(Path(folder, str(index)))
            # Compare two loaded models: saving rounds adapters to bfloat16.
            fitted_model, other_model = (
                OptiRAG.from_pretrained(Path(folder, str(index)), device=kind) for kind in (fit_device, other_device)
            )
            scores = [
                loaded.predict(loaded.requests(events, parts.test), early_exit=False).probability
                for loaded in (fitted_model, other_model)
            ]
            assert np.isfinite(scores[0]).all()
            largest = float(np.abs(scores[0] - scores[1]).max())
            assert largest < 0.05, (
                f"fitted on {fit_device}: probabilities on {other_device} are off by up to {largest:.3f}"
            )
            worst = max(worst, largest / 0.05)
    return {"worst": worst}


def _events() -> Any:
    from reasonrec_fast.data import Interactions

    generator = np.random.default_rng(0)
    films, genres = [f"f{i}" for i in range(40)], ("Drama", "Comedy", "Horror")
    return Interactions.from_columns(
        [f"u{u}" for u in generator.integers(0, 20, 600)],
        [films[i] for i in generator.integers(0, 40, 600)],
        generator.integers(0, 2, 600).tolist(),
        np.sort(generator.integers(0, 10_000, 600)).tolist(),
        titles={film: f"Film {film}" for film in films},
        attributes={"genres": {film: (genres[i % 3],) for i, film in enumerate(films)}},
    )


def _config(folder: Path) -> Any:
    """Settings for fast training, with a four-layer Llama and a byte tokenizer saved in ``folder``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from reasonrec_fast.models.optirag import OptiRAGConfig
    from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig

    vocabulary = {token: index for index, token in enumerate(["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    return OptiRAGConfig(
        boosted=find_spec("lightgbm") is not None,  # a machine that is there for minutes may have none
        backbone=str(folder), prefix_tokens=300, suffix_tokens=200, slate_size=4, num_neighbours=5, exits=(1, 2),
        samples=48, warm_start_steps=20, folds=2, retriever=EmbeddingConfig(dim=8, steps=10, batch=128),
    )  # fmt: skip
