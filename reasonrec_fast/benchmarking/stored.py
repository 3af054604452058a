"""Prompts as token ids and the shape of SmolLM2-135M, stored beside this file: a model and its input for machines
without the data set and the weights (written by ``benchmarks/store_prompts.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.files import read_json
from reasonrec_fast.lm.layout import TokenGroup

FOLDER = Path(__file__).resolve().parent
EXIT_SHARE = 0.6
"""Share of the remaining rows that leave at each exit; gives about the demo's depths."""


@dataclass(frozen=True)
class StoredWork:
    """The input of one run: ``R`` rows.

    Attributes:
        groups: prefixes and suffixes, token ids.
        features: standardised dense features, float32 ``[R, F]`` on the CPU.
    """

    groups: list[TokenGroup]
    features: torch.Tensor

    @property
    def rows(self) -> int:
        return sum(len(suffixes) for _, suffixes in self.groups)

    @property
    def tokens(self) -> int:
        """Number of tokens of all groups, each prefix counted once."""
        return sum(len(prefix) + sum(map(len, suffixes)) for prefix, suffixes in self.groups)

    @property
    def texts(self) -> list[list[int]]:
        """The full prompt of every request."""
        return [[*prefix, *suffix] for prefix, suffixes in self.groups for suffix in suffixes]


@cache
def _stored(name: str) -> Any:
    return read_json(FOLDER / f"{name}.json")


def decoder_shape(*, tiny: bool = False) -> dict[str, Any]:
    """Arguments of a ``LlamaConfig``: SmolLM2-135M's, or with ``tiny`` those of a model of some kilobytes."""
    shape = dict(_stored("smollm2-135m")["decoder"])
    if tiny:
        shape |= {
            "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 3,
            "num_key_value_heads": 1, "head_dim": 16,
        }  # fmt: skip
    return shape


def random_ranker(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, tiny: bool = False
) -> EarlyExitModel:
    """A decoder of SmolLM2-135M's shape with the demo's exits and the same random weights on every device.

    The heads' scores are spread over (0, 1), so that errors are visible.

    Args:
        device: of the model.
        dtype: of the decoder; heads are float32.
        tiny: use the shape of a model of some kilobytes, for rehearsals.
    """
    from transformers import LlamaConfig, LlamaForCausalLM  # here, since the import takes seconds

    from reasonrec_fast.lm.decoder import Decoder

    stored = _stored("smollm2-135m")["heads"]
    shape = decoder_shape(tiny=tiny)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        causal = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=shape["hidden_size"] ** -0.5))
        exits = (1, 2, 3) if tiny else stored["exits"]
        model = EarlyExitModel(Decoder(causal), exits, num_features=stored["num_features"])
        with torch.no_grad():
            for head in model.heads:
                head.weight.mul_(20.0)
    model.backbone.to(device=device, dtype=dtype)
    model.heads.to(device)
    return model.eval()


def stored_work(name: str, *, groups: int | None = None, tiny: bool = False) -> StoredWork:
    """Prompts by name: ``"slates"`` (four users, 232 tokens, 32 candidates of 24), ``"texts"`` (sixteen users, one
    candidate each, of different lengths) or ``"long"`` (two prefixes of 2,000 tokens, six candidates of 24).

    Args:
        name: of the prompts.
        groups: number of groups; all by default.
        tiny: short beginnings of at most six groups of three candidates, for rehearsals.

    Raises:
        ValueError: an unknown name.

    >>> work = stored_work("slates", groups=1)
    >>> work.tokens, work.rows
    (1000, 32)
    """
    stored = _stored("prompts")
    if name not in stored:
        raise ValueError(f"name: expected one of {sorted(stored)}; got {name!r}")
    token_groups: list[TokenGroup] = [(prefix, suffixes) for prefix, suffixes in stored[name][:groups]]
    if tiny:
        token_groups = [
            (prefix[:20], [suffix[-5:] for suffix in suffixes[:3]]) for prefix, suffixes in token_groups[:6]
        ]
    rows = sum(len(suffixes) for _, suffixes in token_groups)
    generator = torch.Generator().manual_seed(1)
    return StoredWork(
        token_groups, torch.randn(rows, _stored("smollm2-135m")["heads"]["num_features"], generator=generator)
    )


def spread_policy(model: EarlyExitModel, work: StoredWork) -> ExitPolicy:
    """Thresholds at which about :data:`EXIT_SHARE` of the remaining rows leave at each exit.

    Each is in the widest gap of the confidences near that share, so that rounding changes no row's exit.
    """
    device = model.backbone.device
    with torch.inference_mode():
        statistics = model.all_exits(work.groups, work.features.to(device))
    remaining, thresholds = torch.arange(work.rows), []
    for exit_statistics in statistics[:-1]:
        confidence = exit_statistics.confidence.cpu()[remaining].sort(descending=True)
        if len(remaining) < 2:
            thresholds.append(float("inf"))
            continue
        middle = min(max(round(EXIT_SHARE * len(remaining)), 1), len(remaining) - 1)
        nearby = range(max(middle - len(remaining) // 8, 1), min(middle + len(remaining) // 8, len(remaining) - 1) + 1)
        gaps = {index: float(confidence.values[index - 1] - confidence.values[index]) for index in nearby}
        index = max(gaps, key=lambda index: gaps[index])
        thresholds.append(float(confidence.values[index - 1 : index + 1].mean()))
        remaining = remaining[confidence.indices[index:].sort().values]
    return ExitPolicy((tuple(thresholds),))
