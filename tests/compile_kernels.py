"""Compile the Triton kernels for sm_80, sm_90 and sm_100 without a driver; print their resources as JSON.

``--budget`` makes them the budget of the installed Triton in ``static_budget.json`` instead.
"""

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cubins
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from reasonrec_fast.kernels import (
    aggregate,
    decoder_layer,
    exit_confidence,
    packed_attention,
    token_logprobs,
    topk,
)
from reasonrec_fast.kernels.logits import BLOCK_D, Tile, tile_of

TARGETS = (80, 90, 100)
WHOLE = ("width", "block_classes", "query_stride", "key_stride", "value_stride", "gate_stride", "up_stride")
"""Sizes that are mostly multiples of 16, as Triton finds at run time; others are not specialised."""
Case = tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def of_type(kind: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, kind)


def tiled(name: str, tiles: tuple[Tile, ...], element: str) -> Iterator[tuple[str, Tile, dict[str, int]]]:
    """The tiles of logits that a type takes, with a name each."""
    for tile in dict.fromkeys(tile_of(tiles, DTYPES[element], batch.rows) for batch in tiles):
        constants = {"BLOCK_B": tile.rows, "BLOCK_C": tile.classes, "BLOCK_D": BLOCK_D}
        yield f"{name}_{tile.rows}", tile, constants


def cases(element: str) -> Iterator[tuple[str, Case]]:
    """Every kernel for inputs of a type; counts and widths as Triton sees multiples of 16."""
    floats, integers = f"*{element}", "*i64"
    heads = {**of_type(floats, "hidden", "heads", "bias"), "temperature": "*fp64", "targets": integers}
    weight = {**of_type(floats, "hidden", "weight", "bias"), "temperature": "*fp64"}
    statistics = {
        **of_type("*fp32", "probability", "positive_probability", "confidence", "entropy", "logsumexp"),
        "target_logprob": "*fp32",
        "prediction": integers,
    }
    size = of_type("i32", "batch", "classes", "width")
    ends = of_type("*i32", "user_indptr", "item_indptr", "plan")
    tables = {**of_type(floats, "x", "y", "out"), **of_type("*fp32", "total", "parts", "weights")}
    counts = of_type("i32", "layers", "users", "user_pieces", "pieces")
    layer = {**counts, "layer": "i32", "drop_scale": "fp32"}
    cut = {"WIDTH": 64, "SPLIT": aggregate._SPLIT, "BLOCK_D": 64}
    whole_warp = {"BLOCK_T": aggregate.block_rows(DTYPES[element].itemsize, 64)}
    yield (
        "prepare",
        (
            aggregate.prepare_kernel,
            {
                **ends,
                **of_type(floats, "x", "scaled"),
                "weights": "*fp32",
                **counts,
                **of_type("i32", "items", "steps"),
            },
            {**cut, "BLOCK_P": 128, "BLOCK_R": 32},
            {},
        ),
    )
    yield (
        "layer",
        (
            aggregate.layer_kernel,
            {
                **ends,
                **of_type("*i32", "user_indices", "item_indices"),
                **tables,
                "scaled": floats,
                "seed": integers,
                **layer,
                "drop_below": "i64",
            },
            {**cut, **whole_warp, "DROPOUT": True, "BLOCK_E": aggregate.block_edges(DTYPES[element].itemsize, 64)},
            aggregate.LAUNCH,
        ),
    )
    yield (
        "join_rows",
        (
            aggregate.join_kernel,
            {**ends, **tables, **layer},
            {**cut, **whole_warp, "BLOCK_P": aggregate.block_parts(64)},
            aggregate.LAUNCH,
        ),
    )
    options = {"HAS_BIAS": True, "HAS_TARGETS": True}
    for name, tile, constants in tiled("stream", exit_confidence.TILES, element):
        yield (
            name,
            (
                exit_confidence.stream_kernel,
                {**heads, "parts": "*fp32", "argmaxes": "*i32", **size, **of_type("i32", "positive", "stretch")},
                {**options, **constants},
                tile.launch,
            ),
        )
    for block_s, block_b in exit_confidence.JOINED:
        yield (
            f"join_{block_s}_stretches",
            (
                exit_confidence.join_kernel,
                {
                    "parts": "*fp32",
                    "argmaxes": "*i32",
                    **statistics,
                    **of_type("i32", "batch", "stretches"),
                    "log_classes": "fp32",
                },
                {"HAS_TARGETS": True, "MEASURE": 3, "BLOCK_S": block_s, "BLOCK_B": block_b},
                {},
            ),
        )
    yield (
        "ensemble",
        (
            exit_confidence.ensemble_kernel,
            {**heads, **statistics, **size, "positive": "i32", "log_classes": "fp32"},
            {**options, "BLOCK_B": 16, "BLOCK_C": 64, "BLOCK_D": 64, "MEASURE": 3, "MEMBERS": 4},
            {},
        ),
    )
    for name, tile, constants in tiled("partial", token_logprobs.TILES, element):
        yield (
            name,
            (
                token_logprobs.partial_kernel,
                {**weight, **of_type("*fp32", "best", "total", "weighted"), **size, "stretch": "i32"},
                {"HAS_BIAS": True, **constants},
                tile.launch,
            ),
        )
    yield (
        "logit",
        (
            token_logprobs.logit_kernel,
            {
                **of_type(floats, "hidden", "weight", "bias"),
                "tokens": integers,
                "logits": "*fp32",
                **of_type("i32", "classes", "width", "count", "ignore_index"),
            },
            {"HAS_BIAS": True, "BLOCK_D": 256},
            {"num_warps": 1},
        ),
    )
    for name, tile, constants in tiled("gradient", token_logprobs.TILES, element):
        yield (
            name,
            (
                token_logprobs.gradient_kernel,
                {
                    **weight,
                    "tokens": integers,
                    **of_type("*fp32", "logsumexp", "entropy", "grad_logprobs", "through_all", "through_entropy"),
                    "gradient": floats,
                    **size,
                    **of_type("i32", "first_class", "block_classes", "count"),
                },
                {"HAS_BIAS": True, **constants},
                tile.launch,
            ),
        )
    scores = {"scores": "*fp32", **of_type("i32", "batch", "count", "width", "k", "first", "kept", "stride", "stretch")}
    rows = {**of_type(integers, "indptr", "indices", "picked", "below", "found", "keys"), "values": "*fp32"}

    def of_scores(kernel: Any, constants: dict[str, Any], launch: dict[str, int]) -> Case:
        known = {**of_type(floats, "queries", "items"), **scores, **rows}
        return kernel, {name: known[name] for name in kernel.arg_names if name in known}, constants, launch

    step = topk.block_width(DTYPES[element])
    yield "scores", of_scores(topk.score_kernel, {**topk.TILE, "BLOCK_D": step}, topk.LAUNCH)
    if element == "fp32":
        yield "exclude", of_scores(topk.exclude_kernel, {"BLOCK_E": 64}, {"num_warps": 1})
        yield "decode", of_scores(topk.decode_kernel, {"BLOCK_K": 64}, {"num_warps": 1})
        for held, passes in ((32, False), (64, True)):
            groups = {"K": held, "GROUPS": topk.GROUPS, "READ_AGAIN": topk.READ_AGAIN}
            yield f"select_{held}", of_scores(topk.select_kernel, {"HAS_BELOW": passes, **groups}, topk.SELECT)
    between = of_type(floats, "x", "residual", "weight", "summed", "out", "query", "key", "cosines", "sines")
    between |= {**of_type(floats, "gate", "up"), "eps": "fp32"}
    between |= of_type("i32", "query_stride", "key_stride", "gate_stride", "up_stride", "width")

    def between_products(kernel: Any, constants: dict[str, Any], launch: dict[str, int]) -> Case:
        return kernel, {name: between[name] for name in kernel.arg_names if name in between}, constants, launch

    if element != "fp16":
        norm = {"WIDTH": 576, "HAS_RESIDUAL": True, "PLUS_ONE": False, "BLOCK_D": 1024}
        yield "norm", between_products(decoder_layer.norm_kernel, norm, {})
        heads_of = {"HEADS": 9, "GROUPS": 3, "WIDTH": 64, "HALF": 32, "BLOCK_H": 16, "BLOCK_G": 4, "BLOCK_D": 32}
        yield "rotary", between_products(decoder_layer.rotary_kernel, heads_of, {"num_warps": 2})
        yield "gate", between_products(decoder_layer.gate_kernel, {"TANH": False, "BLOCK_D": 1024}, {})
    if element == "fp16":
        return  # as bfloat16
    for width in (64, 128, 256):
        choices = {packed_attention.choose_blocks(DTYPES[element], width, rows) for rows in (1, 2**14, 2**18)}
        for blocks in sorted(choices):
            yield (
                f"attention_{width}_{blocks.rows}",
                (
                    packed_attention.attention_kernel,
                    {
                        **of_type(floats, "query", "key", "value", "out"),
                        **of_type("*i32", "tiles", "bounds"),
                        **of_type("i32", "query_stride", "key_stride", "value_stride", "tokens"),
                        **of_type("fp32", "scale", "softcap"),
                    },
                    {
                        "GROUP": 3,
                        "ROW_HEADS": 3,
                        "WIDTH": width,
                        "HAS_CAP": True,
                        "BLOCK_M": blocks.rows,
                        "BLOCK_N": blocks.keys,
                        "BLOCK_D": blocks.width,
                    },
                    {"num_warps": blocks.num_warps, "num_stages": blocks.num_stages},
                ),
            )


def compiled(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], launch: dict[str, int], capability: int
) -> tuple[dict[str, int], bytes]:
    """What the compiled kernel uses, and its instructions."""
    order = [name for name in kernel.arg_names if name in signature or name in constants]
    full = {name: signature.get(name, "constexpr") for name in order}
    # What Triton finds by itself at run time: aligned pointers, and sizes that are multiples of 16.
    whole = [index for index, name in enumerate(order) if full[name].startswith("*") or name in WHOLE]
    attributes = {(index,): [["tt.divisibility", 16]] for index in whole}
    source = ASTSource(kernel, full, constexprs=constants, attrs=attributes)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
    return {**cubins.usage(built.asm["cubin"]), "shared": built.metadata.shared}, cubins.code(built.asm["cubin"])


def compile_one(job: tuple[str, str, int]) -> tuple[dict[str, int], bytes]:
    name, element, capability = job
    return compiled(*dict(cases(element))[name], capability)


def compile_all(jobs: list[tuple[str, str, int]]) -> dict[str, dict[str, int]]:
    """The resources of each kernel, under ``name/type/sm_NN``."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        built = dict(zip(jobs, pool.map(compile_one, jobs), strict=True))
    for target in TARGETS:
        of_target = [job for job in jobs if job[2] == target]
        counted = cubins.instructions([built[job][1] for job in of_target], target)
        for job, counts in zip(of_target, counted, strict=True):
            built[job][0].update(counts)
    return {f"{name}/{element}/sm_{target}": used for (name, element, target), (used, _) in built.items()}


def budget(result: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """What holds for all targets: at most so many registers and bytes, at least so many loads and products."""
    kernels: dict[str, list[dict[str, int]]] = {}
    for name, used in result.items():
        kernels.setdefault(name.rsplit("/", 1)[0], []).append(used)
    return {
        kernel: {
            **{kind: max(used[kind] for used in targets) for kind in ("registers", "shared")},
            **{kind: min(used[kind] for used in targets) for kind in ("wide_loads", "tensor_core")},
        }
        for kernel, targets in kernels.items()
    }


def write_budget(result: dict[str, dict[str, int]]) -> None:
    """Write the results as the budget of this version of Triton; refused if a kernel spills."""
    spilled = sorted(name for name, used in result.items() if used["stack"])
    if spilled:
        raise SystemExit(f"no budget is written: {spilled} spill")
    path = Path(__file__).with_name("static_budget.json")
    budgets = json.loads(path.read_text())
    budgets[".".join(triton.__version__.split(".")[:2])] = budget(result)
    blocks = []
    for version, kernels in sorted(budgets.items()):
        lines = [f"    {json.dumps(kernel)}: {json.dumps(values)}" for kernel, values in kernels.items()]
        blocks.append(f"  {json.dumps(version)}: {{\n" + ",\n".join(lines) + "\n  }")
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


def main() -> None:
    jobs = [(name, element, target) for element in DTYPES for name, _ in cases(element) for target in TARGETS]
    result = compile_all(jobs)
    if sys.argv[1:] == ["--budget"]:
        write_budget(result)
    else:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
