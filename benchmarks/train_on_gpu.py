"""The demo's adapters and heads, trained in several variants where a GPU is at hand for some minutes.

``prepare`` does here what needs no language model (retriever, folds, evidence, boosted trees, token ids) and leaves one
compact file; ``train`` needs that file, torch, transformers and peft alone. See ``--help`` of either.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("train", "validation", "test")


def prepare(output: Path) -> None:
    """Write ``data.npz`` (what travels) and ``evidence.npz`` with the trees (what stays)."""
    from dataclasses import replace

    from reasonrec_fast.data import load_movielens_small, split_by_time
    from reasonrec_fast.lm.loading import load_language_model
    from reasonrec_fast.models.optirag.boosted import BoostedEvidence, boosted_features
    from reasonrec_fast.models.optirag.config import OptiRAGConfig
    from reasonrec_fast.models.optirag.dataset import RequestBuilder
    from reasonrec_fast.models.optirag.prompt import TokenIds
    from reasonrec_fast.models.optirag.retriever import Retriever

    output.mkdir(parents=True, exist_ok=True)
    config = OptiRAGConfig(template="films")
    data = load_movielens_small()
    split = split_by_time(data)
    events = data.take(split.train)
    tick = _Clock()
    retriever = Retriever.train(events, np.arange(len(events)), config.retriever)
    tick("retriever")
    ids = TokenIds(load_language_model(config.backbone, device="cpu")[1])
    builder = RequestBuilder(data, split.train, retriever, ids, config)
    training = builder.training_evidence()
    tick("training evidence")
    shown = {name: builder.visible_evidence(getattr(split, name)) for name in PARTS[1:]}
    tick("evidence")
    booster = BoostedEvidence.fit(
        training.evidence, training.labels, shown["validation"], data.labels[split.validation], seed=config.seed
    )
    tick(f"trees: {booster.num_trees}")
    builder.booster = booster
    stored: dict[str, np.ndarray] = {}
    kept: dict[str, np.ndarray] = {"folds": training.folds}
    parts = {name: builder.requests(getattr(split, name)) for name in PARTS[1:]}
    builder.config = replace(config, cold_share=0.0)
    parts["train"] = builder.training_requests(training)
    builder.config = config
    hidden = builder.training_requests(training)
    tick("out-of-fold logits")
    mean, scale = parts["train"].numbers.mean(0), parts["train"].numbers.std(0)
    stored["mean"], stored["scale"] = mean, scale
    users = {"train": training.table.users} | {name: data.users[getattr(split, name)] for name in PARTS[1:]}
    for name, requests in parts.items():
        stored |= {f"{name}.{key}": value for key, value in _packed(requests.slates).items()}
        stored |= {f"{name}.{key}": value for key, value in _columns(requests, mean, scale).items()}
        stored[f"{name}.users"] = users[name].astype(np.uint16)
        evidence = training.evidence if name == "train" else shown[name]
        kept |= {f"{name}.{key}": value for key, value in vars(evidence).items() if key != "neighbours"}
        kept |= {f"{name}.features": boosted_features(evidence), f"{name}.offset": requests.offset,
                 f"{name}.labels": requests.labels, f"{name}.users": users[name], f"{name}.cold": requests.cold,
                 f"{name}.rows": getattr(split, name)}  # fmt: skip
    which = np.flatnonzero(np.random.default_rng(config.seed).random(len(training.table)) < config.cold_share)
    packed = _packed(hidden.slates)
    at = {int(row): place for place, row in enumerate(packed["rows"])}
    ends = np.cumsum(packed["suffix_lengths"].astype(np.int64))
    chosen = [at[int(row)] for row in which]
    suffixes = [packed["suffixes"][ends[p] - packed["suffix_lengths"][p] : ends[p]] for p in chosen]
    stored |= {"hidden.rows": which.astype(np.uint32), "hidden.suffixes": np.concatenate(suffixes),
               "hidden.suffix_lengths": packed["suffix_lengths"][chosen]}  # fmt: skip
    stored |= {f"hidden.{key}": value[which] for key, value in _columns(hidden, mean, scale).items()}
    np.savez_compressed(output / "data.npz", **stored)
    np.savez_compressed(output / "evidence.npz", **kept)
    (output / "booster.json").write_text(json.dumps(booster.save(output / "booster.txt")))
    tick(f"written: {(output / 'data.npz').stat().st_size / 1e6:.1f} MB")


def _packed(slates: Sequence[Any]) -> dict[str, np.ndarray]:
    """Slates as flat arrays: token ids, and how many of them each prefix, each suffix and each slate has."""
    suffixes = [suffix for slate in slates for suffix in slate.suffixes]
    return {
        "prefixes": np.concatenate([np.array(slate.prefix, dtype=np.uint16) for slate in slates]),
        "prefix_lengths": np.array([len(slate.prefix) for slate in slates], dtype=np.uint16),
        "suffixes": np.concatenate([np.array(suffix, dtype=np.uint16) for suffix in suffixes]),
        "suffix_lengths": np.array([len(suffix) for suffix in suffixes], dtype=np.uint16),
        "sizes": np.array([len(slate.rows) for slate in slates], dtype=np.uint16),
        "rows": np.concatenate([slate.rows for slate in slates]).astype(np.uint32),
    }


def _columns(requests: Any, mean: np.ndarray, scale: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "numbers": ((requests.numbers - mean) / scale).astype(np.float16),
        "offset": requests.offset.astype(np.float32),
        "labels": requests.labels.astype(np.uint8),
        "cold": requests.cold,
    }


def prepare_weights(output: Path) -> None:
    """Write the language model as its file holds it (blocks of 4 and 8 bits, without unused rows of the embedding), in
    two parts, and its configuration: whoever reads them needs no GGUF library."""
    from gguf import GGUFReader
    from safetensors.numpy import save_file
    from transformers import AutoConfig

    from reasonrec_fast.lm.loading import _smollm2_file

    data = np.load(output / "data.npz")
    used = np.unique(np.concatenate([data[name] for name in data.files if name.endswith(("prefixes", "suffixes"))]))
    path = _smollm2_file()
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    stored: dict[str, np.ndarray] = {"embedding.rows": used}
    for tensor in GGUFReader(path).tensors:
        kind, name = tensor.tensor_type.name, str(tensor.name)
        blocks = np.array(tensor.data)
        part = name.split(".")[2] if name.startswith("blk.") else name
        if part in heads:  # the file holds halves of a head that turn together side by side
            blocks = blocks.reshape(heads[part], -1, 2, blocks.shape[1]).swapaxes(1, 2).reshape(blocks.shape)
        stored[f"{name}:{kind}"] = np.ascontiguousarray(blocks[used] if name == "token_embd.weight" else blocks)
    names = sorted(stored)
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        save_file({name: stored[name] for name in part}, output / f"weights-{number}.safetensors")
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "vocab_size", "rms_norm_eps", "max_position_embeddings", "rope_theta", "head_dim")  # fmt: skip
    values = config.to_dict()
    values |= values.get("rope_parameters") or {}
    (output / "llama.json").write_text(json.dumps({name: values[name] for name in kept if name in values}))


_NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
          "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
          "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}  # fmt: skip


def load_weights(folder: Path, device: Any, dtype: Any) -> Any:
    """The causal language model that :func:`prepare_weights` wrote."""
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    values = json.loads((folder / "llama.json").read_text())
    model = LlamaForCausalLM(LlamaConfig(**values, tie_word_embeddings=True))
    state, raw = model.state_dict(), {}
    for number in range(2):
        raw |= load_file(folder / f"weights-{number}.safetensors")
    rows = raw.pop("embedding.rows").long()
    for full, blocks in raw.items():
        name, kind = full.split(":")
        weight = _dequantised(blocks, kind)
        if name == "token_embd.weight":
            state["model.embed_tokens.weight"].zero_()[rows] = weight
        elif name == "output_norm.weight":
            state["model.norm.weight"].copy_(weight)
        else:
            _, layer, part, _ = name.split(".")
            state[f"model.layers.{layer}.{_NAMES[part]}.weight"].copy_(weight)
    return model.to(device=torch.device(device), dtype=dtype).eval()


def _dequantised(blocks: Any, kind: str) -> Any:
    """Blocks of 32 weights: a float16 step, in Q4_1 a float16 minimum, and 4 or 8 bits each."""
    import torch

    if kind == "F32":
        return blocks
    size = {"Q4_1": 20, "Q8_0": 34}[kind]
    blocks = blocks.reshape(len(blocks), -1, size)
    step = blocks[..., :2].contiguous().view(torch.float16).float()
    if kind == "Q8_0":
        return (blocks[..., 2:].contiguous().view(torch.int8).float() * step).flatten(1)
    least = blocks[..., 2:4].contiguous().view(torch.float16).float()
    nibbles = torch.cat([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], -1)
    return (nibbles.float() * step + least).flatten(1)


class _Clock:
    """Says how long each step took."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()

    def __call__(self, what: str) -> None:
        print(f"{time.perf_counter() - self.begin:7.1f} s  {what}", flush=True)


class _Part:
    """Slates of a part of the split, read back from flat arrays.

    Attributes:
        slates: of each its rows, prefix and suffixes.
        numbers, offset, labels, users: of the requests.
    """

    def __init__(self, data: Any, name: str, *, hidden: bool = False) -> None:
        def of(key: str) -> np.ndarray:
            return data[f"{name}.{key}"]

        self.numbers, self.offset = of("numbers").astype(np.float32), of("offset").copy()
        self.labels, self.users = of("labels").astype(np.int64), of("users").astype(np.int64)
        rows = of("rows").astype(np.int64)
        prefixes = _cut(of("prefixes"), of("prefix_lengths"))
        suffixes = dict(zip(rows.tolist(), _cut(of("suffixes"), of("suffix_lengths")), strict=True))
        if hidden:
            which = data["hidden.rows"].astype(np.int64)
            suffixes |= zip(which.tolist(), _cut(data["hidden.suffixes"], data["hidden.suffix_lengths"]), strict=True)
            self.numbers[which] = data["hidden.numbers"]
            self.offset[which] = data["hidden.offset"]
        ends = np.cumsum(of("sizes").astype(np.int64))
        self.slates = [
            (rows[end - size : end], prefix, [suffixes[row] for row in rows[end - size : end].tolist()])
            for end, size, prefix in zip(ends.tolist(), of("sizes").tolist(), prefixes, strict=True)
        ]

    def batches(self, tokens: int, seed: int | None = None) -> list[list[Any]]:
        """Slates of about ``tokens`` tokens together; in a seeded order, or as they are."""
        order = range(len(self.slates)) if seed is None else np.random.default_rng(seed).permutation(len(self.slates))
        parts: list[list[Any]] = []
        filled = tokens
        for place in order:
            _, prefix, suffixes = self.slates[place]
            size = len(prefix) + sum(map(len, suffixes))
            if filled + size > tokens:
                parts.append([])
                filled = 0
            parts[-1].append(self.slates[place])
            filled += size
        return parts


def _cut(flat: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    ends = np.cumsum(lengths.astype(np.int64))
    return [flat[end - length : end].tolist() for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def attention(query: Any, key: Any, value: Any, segments: Any, *, scale: Any, softcap: Any = None, dropout: Any = 0.0):  # type: ignore[no-untyped-def]
    """``ops.packed_attention`` with gradients for a GPU: all prefixes in one padded product and all suffixes in
    another, where the package's own goes from prefix to prefix."""
    import torch

    del softcap, dropout  # neither is there in this language model
    plan = _planned(segments, query.device)
    out = torch.empty_like(query)
    repeat = query.shape[1] // key.shape[1]
    for queries, keys, mask, at, places in plan:
        q, k, v = query[queries], key[keys], value[keys]  # [n, w, H, d], [n, m, G, d]
        found = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.repeat_interleave(repeat, 2).transpose(1, 2),
            v.repeat_interleave(repeat, 2).transpose(1, 2), attn_mask=mask, is_causal=mask is None, scale=scale,
        )  # fmt: skip
        out = out.index_copy(0, places, found.transpose(1, 2).flatten(0, 1)[at])
    return out


_LAST_PLAN: list[Any] = [None, None]


def _planned(segments: Any, device: Any) -> list[Any]:
    """Index tensors of a table of segments; that of the last table is kept."""
    if _LAST_PLAN[0] is not segments:
        table = segments.numpy()
        _LAST_PLAN[:] = segments, [_plan(rows, device) for rows in (table[table[:, 3] == 0], table[table[:, 3] > 0])
                                   if len(rows)]  # fmt: skip
    return _LAST_PLAN[1]


def _plan(rows: np.ndarray, device: Any) -> Any:
    import torch

    begin, count, prefix_begin, prefix, own_begin, seen = rows.T
    width, own = int(count.max()), int((seen + count - 1).max())
    j, i = np.arange(width), np.arange(own)
    inside = j < count[:, None]
    queries = np.where(inside, begin[:, None] + j, begin[:, None])
    keys = np.where(i < (seen + count - 1)[:, None], own_begin[:, None] + i, own_begin[:, None])
    mask = i[None, None] < (seen[:, None] + np.minimum(j, count[:, None] - 1))[:, :, None]
    if prefix.max():
        p = np.arange(int(prefix.max()))
        held = p < prefix[:, None]
        keys = np.concatenate([np.where(held, prefix_begin[:, None] + p, prefix_begin[:, None]), keys], 1)
        mask = np.concatenate([np.broadcast_to(held[:, None], (len(rows), width, len(p))), mask], 2)
    tensors = [torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (
        queries, keys, mask[:, None], np.flatnonzero(inside), (begin[:, None] + j)[inside])]  # fmt: skip
    if not prefix.max() and (seen == 1).all():
        tensors[2] = None  # what lies behind a shorter text is read by nobody: causal is enough
    return tensors


_BASE = {"epochs": 2, "learning_rate": 5e-4, "pairwise_weight": 1.0, "hidden": True, "rank": 8, "weights": "depth"}
VARIANTS: tuple[dict[str, Any], ...] = (
    {**_BASE, "name": "base"},
    {**_BASE, "name": "pairwise-3-equal", "pairwise_weight": 3.0, "weights": "equal"},
    {**_BASE, "name": "gentle", "learning_rate": 1.5e-4},
    {**_BASE, "name": "shown", "hidden": False},
    {**_BASE, "name": "one-epoch", "epochs": 1},
    {**_BASE, "name": "pointwise", "pairwise_weight": 0.0},
    {**_BASE, "name": "long", "epochs": 4},
    {**_BASE, "name": "rank-16", "rank": 16},
)
"""Most promising first."""
MOST_FILES = 6
"""Of variants; the report is one more."""


def train(folder: Path, output: Path, minutes: float, *, device: str, tokens: int, slates: int | None) -> None:
    """Train one variant after the other until the time is up; leave adapters, heads and scores of each in one file.

    Args:
        folder: of :func:`prepare`.
        output: where the files go.
        minutes: a variant that would not end within them is left out.
        device: where to train.
        tokens: of a step.
        slates: only so many of each part, to try the whole of it on a CPU.
    """
    import torch
    from safetensors.torch import save_file

    from reasonrec_fast import ops

    tick, data, report = _Clock(), np.load(folder / "data.npz"), []
    parts = {name: _Part(data, name) for name in PARTS} | {"hidden": _Part(data, "train", hidden=True)}
    for part in parts.values():
        part.slates = part.slates[:slates]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    language_model = load_weights(folder, device, dtype)
    original = {name: value.clone() for name, value in language_model.state_dict().items()}
    ops.packed_attention = attention
    tick("loaded")
    output.mkdir(parents=True, exist_ok=True)
    seconds_a_step = _warm_up(language_model, parts["train"], tokens, device)
    tick(f"{seconds_a_step:.3f} s a step of {tokens} tokens")
    for variant in VARIANTS:
        part = parts["hidden" if variant["hidden"] else "train"]
        steps = [b for epoch in range(variant["epochs"]) for b in part.batches(tokens, seed=epoch)]
        needed = 1.1 * len(steps) * seconds_a_step + 12
        left = 60 * minutes - (time.perf_counter() - tick.begin)
        if needed > left:
            tick(f"{variant['name']}: left out, as it needs {needed:.0f} s of {left:.0f}")
            continue
        language_model.load_state_dict(original)
        model, adapters = _model(language_model, variant["rank"], device)
        begin = time.perf_counter()
        _train(model, part, steps, variant)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds_a_step = (time.perf_counter() - begin) / max(len(steps), 1)
        tensors = {name: p.detach().bfloat16().cpu() for name, p in adapters.named_parameters() if "lora_" in name}
        tensors |= {f"heads.{name}": value.detach().cpu() for name, value in model.heads.state_dict().items()}
        figures: dict[str, Any] = {"variant": variant, "steps": len(steps), "seconds_a_step": seconds_a_step}
        for name in PARTS[1:]:
            logits = _scores(model, parts[name], tokens)
            tensors[f"scores.{name}"] = torch.from_numpy(logits.astype(np.float32))
            figures[name] = _metrics(parts[name], logits)
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, output / f"{variant['name']}.safetensors"
        )
        report.append(figures)
        (output / "report.json").write_text(json.dumps(report, indent=1))
        ranked = sorted(report, key=lambda r: max(map(sum, zip(*r["validation"].values(), strict=True))), reverse=True)
        for worse in ranked[MOST_FILES:]:  # chosen on validation
            (output / f"{worse['variant']['name']}.safetensors").unlink(missing_ok=True)
        tick(f"{variant['name']}: {json.dumps(figures['validation'])}")
        language_model = adapters.unload()


def _model(language_model: Any, rank: int, device: str) -> tuple[Any, Any]:
    import torch
    from peft import LoraConfig, get_peft_model

    from reasonrec_fast.early_exit.engine import EarlyExitModel
    from reasonrec_fast.lm.decoder import Decoder

    torch.manual_seed(0)
    backbone = Decoder(language_model)
    adapters = get_peft_model(language_model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    torch.manual_seed(0)
    return EarlyExitModel(backbone, None, num_numbers=11, offset=True).to(device), adapters.to(device)


def _batch(part: _Part, slates: list[Any]) -> Any:
    import torch

    from reasonrec_fast.training.exits import Batch

    rows = np.concatenate([slate[0] for slate in slates])
    return Batch(
        [(prefix, suffixes) for _, prefix, suffixes in slates],
        torch.from_numpy(part.labels[rows]),
        torch.from_numpy(part.numbers[rows]),
        offset=torch.from_numpy(part.offset[rows]),
    )


def _train(model: Any, part: _Part, steps: list[Any], variant: dict[str, Any]) -> None:
    import torch

    from reasonrec_fast.training import exits
    from reasonrec_fast.training.exits import ExitTraining, train_exits

    by_depth = exits.exit_weights
    if variant["weights"] == "equal":
        exits.exit_weights = lambda layers: torch.full((len(layers),), 1 / len(layers))
    settings = ExitTraining(
        learning_rate=variant["learning_rate"], head_learning_rate=variant.get("head_learning_rate", 1e-3),
        pairwise_weight=variant["pairwise_weight"],
    )  # fmt: skip
    try:
        train_exits(model, steps, lambda slates: _batch(part, slates), settings)
    finally:
        exits.exit_weights = by_depth


def _warm_up(language_model: Any, part: _Part, tokens: int, device: str) -> float:
    """Seconds of a step, of a model that is thrown away."""
    import torch

    model, adapters = _model(language_model, 8, device)
    steps = part.batches(tokens, seed=0)[:12]
    _train(model, part, steps[:4], VARIANTS[0])
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    _train(model, part, steps[4:], VARIANTS[0])
    if device == "cuda":
        torch.cuda.synchronize()
    adapters.unload()
    return (time.perf_counter() - begin) / max(len(steps[4:]), 1)


def _scores(model: Any, part: _Part, tokens: int) -> np.ndarray:
    """Logits of every head, float64 ``[E, N]``; NaN of requests that were left out."""
    import torch

    found = np.full((len(model.exits), len(part.labels)), np.nan)
    with torch.no_grad():
        for slates in part.batches(2 * tokens):
            batch = _batch(part, slates)
            rows = np.concatenate([slate[0] for slate in slates])
            exits = model.all_exits(batch.groups, batch.numbers, torch.ones_like(batch.labels), offset=batch.offset)
            yes = torch.stack([statistics.target_logprob[:, 0] for statistics in exits]).double().cpu().numpy()
            found[:, rows] = yes - np.log(-np.expm1(np.minimum(yes, -1e-12)))
    return found


def _metrics(part: _Part, logits: np.ndarray) -> dict[str, list[float]]:
    """AUC and GAUC at depth 0 and at every head."""
    from reasonrec_fast import evaluation

    rows = np.flatnonzero(~np.isnan(logits[0]))
    labels, users = part.labels[rows], part.users[rows]
    scores = [part.offset[rows], *logits[:, rows]]
    return {
        "auc": [round(evaluation.auc(labels, values), 5) for values in scores],
        "gauc": [round(evaluation.gauc(labels, values, users), 5) for values in scores],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    first, second = commands.add_parser("prepare"), commands.add_parser("train")
    for command in (first, second):
        command.add_argument("--data", type=Path, default=Path(".gpu-data"))
    second.add_argument("--output", type=Path, required=True)
    second.add_argument("--minutes", type=float, default=5.0)
    second.add_argument("--device", default="cuda")
    second.add_argument("--tokens", type=int, default=8192, help="of a step")
    second.add_argument("--slates", type=int, help="only so many of each part")
    given = parser.parse_args()
    if given.command == "prepare":
        prepare(given.data)
        prepare_weights(given.data)
    else:
        train(given.data, given.output, given.minutes, device=given.device, tokens=given.tokens, slates=given.slates)


if __name__ == "__main__":
    main()
