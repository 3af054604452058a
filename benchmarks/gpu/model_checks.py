"""The early-exit engine and OptiRAG on the GPU against the same on the CPU, with random weights; part of ``checks``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.device import Cuda
from reasonrec_fast.benchmarking.stored import random_ranker, spread_policy, stored_work
from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.lm.prefix_cache import PrefixCache

ENGINE = {"slates": "slates", "exits": "slates", "cache": "slates", "texts": "texts", "long": "long"}
"""What is checked, and on which prompts."""
TOLERANCE = {torch.float32: (2e-4, 2e-3), torch.bfloat16: (0.02, 0.2)}
"""Mean and largest difference of probabilities."""


def units(device: Cuda) -> list[str]:
    found = [f"engine/{kind}/{dtype}" for kind in ENGINE for dtype in ("float32", "bfloat16")]
    return [*found, "optirag/predict/float32"]


def run(name: str, kind: str, dtype: torch.dtype, device: Cuda) -> dict[str, Any]:
    """Raises AssertionError where scores differ."""
    return _optirag(device) if name == "optirag" else _engine(kind, dtype, device)


def _engine(kind: str, dtype: torch.dtype, device: Cuda) -> dict[str, Any]:
    work = stored_work(ENGINE[kind], groups=16 if kind == "texts" else 2, tiny=device.tiny)
    # The CPU computes in float32 with the weights that the GPU has.
    exact = random_ranker("cpu", dtype, tiny=device.tiny).float()
    model = random_ranker(device.kind, dtype, tiny=device.tiny)
    policy = spread_policy(exact, work) if kind == "exits" else None
    expected = exact.rank(work.groups, work.numbers, policy)
    assert expected.probability.std() > 0.05, "the scores are all alike: nothing would be seen of an error"
    cache = PrefixCache(2**30) if kind == "cache" else None
    worst = 0.0
    # Layers run one by one at first, then their graph is recorded, then replayed.
    for _ in range(3 if device.kind == "cuda" and cache is None else 1):
        found = model.rank(work.groups, work.numbers, policy, cache=cache)
        same = found.depth.cpu() == expected.depth
        # Rounding to bfloat16 sends some rows through another exit.
        least = 1.0 if dtype == torch.float32 else 0.7
        assert same.float().mean() >= least, f"depths: {int((~same).sum())} of {len(same)} rows left at another exit"
        worst = max(worst, _compare(found.probability.cpu()[same], expected.probability[same], dtype))
    if cache is not None:
        again = model.rank(work.groups, work.numbers, cache=cache)
        assert cache.hits == len(work.groups), f"cache: expected {len(work.groups)} hits; got {cache.hits}"
        worst = max(worst, _compare(again.probability.cpu(), expected.probability, dtype))
    _check_exits(model, work.groups, work.numbers)
    return {"worst": worst, "rows": work.rows, "tokens": work.tokens}


def _check_exits(model: EarlyExitModel, groups: Any, numbers: torch.Tensor) -> None:
    """What training reads has as many exits as the model, all of them finite."""
    with torch.inference_mode():
        statistics = model.all_exits(groups, numbers)
    assert len(statistics) == len(model.exits)
    assert all(bool(torch.isfinite(found.confidence).all()) for found in statistics)


def _compare(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> float:
    mean, largest = TOLERANCE[dtype]
    difference = (found - expected).abs()
    worst = max(float(difference.mean()) / mean, float(difference.max()) / largest)
    assert worst <= 1.0, (
        f"probabilities: off by {float(difference.mean()):.2g} on average and {float(difference.max()):.2g} at most; "
        f"expected {mean:g} and {largest:g}"
    )
    return worst


def _optirag(device: Cuda) -> dict[str, Any]:
    """A tiny OptiRAG fitted on the CPU predicts the same on the GPU, and one fitted on the GPU the same on the CPU."""
    from reasonrec_fast.data import split_by_time
    from reasonrec_fast.models.optirag import OptiRAG

    events, worst = _events(), 0.0
    parts = split_by_time(events)
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder, "backbone"))
        for place, (here, there) in enumerate((("cpu", device.kind), (device.kind, "cpu"))):
            model = OptiRAG(config, device=here).fit(events, parts)
            model.save_pretrained(Path(folder, str(place)))
            # Both are loaded: adapters are stored in bfloat16.
            one, other = (OptiRAG.from_pretrained(Path(folder, str(place)), device=kind) for kind in (here, there))
            scores = [m.predict(m.requests(events, parts.test), early_exit=False).probability for m in (one, other)]
            assert np.isfinite(scores[0]).all()
            largest = float(np.abs(scores[0] - scores[1]).max())
            assert largest < 0.05, f"fitted on {here}: probabilities on {there} are off by up to {largest:.3f}"
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
    """Settings that train in a moment, over a four-layer Llama with a tokenizer of bytes, saved in a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from reasonrec_fast.models.optirag import OptiRAGConfig
    from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig

    vocabulary = {token: place for place, token in enumerate(["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
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
        backbone=str(folder), prefix_tokens=300, suffix_tokens=200, slate_size=4, num_neighbours=5, exits=(1, 2),
        samples=48, warm_start_steps=20, folds=2, retriever=EmbeddingConfig(dim=8, steps=10, batch=128),
    )  # fmt: skip
