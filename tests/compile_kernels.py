"""Compile the Triton kernels for sm_80, sm_90 and sm_100 without a driver; print their resources as JSON."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from reasonrec_fast.kernels.aggregate import propagate_kernel
from reasonrec_fast.kernels.exit_confidence import ensemble_kernel, stream_kernel
from reasonrec_fast.kernels.token_logprobs import gradient_kernel, partial_kernel

STATISTICS = {
    "hidden": "*bf16",
    "heads": "*bf16",
    "bias": "*bf16",
    "temperature": "*fp64",
    "targets": "*i64",
    "probability": "*fp32",
    "positive_probability": "*fp32",
    "confidence": "*fp32",
    "entropy": "*fp32",
    "logsumexp": "*fp32",
    "target_logprob": "*fp32",
    "prediction": "*i64",
    "batch": "i32",
    "classes": "i32",
    "width": "i32",
    "positive": "i32",
    "log_classes": "fp32",
}
TOKENS = {
    **dict.fromkeys(("hidden", "weight", "bias"), "*bf16"),
    "temperature": "*fp64",
}
COUNTS = dict.fromkeys(("batch", "classes", "width"), "i32")
TILES = {"HAS_BIAS": True, "BLOCK_B": 32, "BLOCK_C": 64, "BLOCK_D": 64}
OPTIONS = {"HAS_BIAS": True, "HAS_TARGETS": True, "MEASURE": 3, "BLOCK_B": 16, "BLOCK_D": 64}
CASES = {
    "propagate": (
        propagate_kernel,
        {
            **dict.fromkeys(("own_indptr", "own_indices", "other_indptr"), "*i32"),
            **dict.fromkeys(("x", "y", "total", "weights"), "*fp32"),
            "seed": "*i64",
            **dict.fromkeys(("layer", "own_start", "other_start", "width"), "i32"),
            "drop_below": "i64",
            "drop_scale": "fp32",
        },
        {"USER_SIDE": True, "DROPOUT": True, "BLOCK_E": 16, "BLOCK_D": 64},
    ),
    "stream": (stream_kernel, STATISTICS, {**OPTIONS, "BLOCK_C": 64}),
    "partial": (
        partial_kernel,
        {**TOKENS, **dict.fromkeys(("best", "total", "weighted"), "*fp32"), **COUNTS, "stretch": "i32"},
        TILES,
    ),
    "gradient": (
        gradient_kernel,
        {
            **TOKENS,
            "tokens": "*i64",
            **dict.fromkeys(("logsumexp", "entropy", "grad_logprobs", "through_all", "through_entropy"), "*fp32"),
            "gradient": "*bf16",
            **COUNTS,
            **dict.fromkeys(("first_class", "block_classes", "count"), "i32"),
        },
        TILES,
    ),
    "ensemble": (ensemble_kernel, STATISTICS, {**OPTIONS, "BLOCK_C": 64, "MEMBERS": 4}),
}


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack (spills) and shared memory, as cuobjdump reads them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        printed = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True)
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", printed.stdout)
    return {"registers": int(usage[1]), "stack": int(usage[2])}


def main() -> None:
    found = {}
    for capability in (80, 90, 100):
        for name, (kernel, signature, constants) in CASES.items():
            full = {**signature, **dict.fromkeys(constants, "constexpr")}
            source = ASTSource(kernel, full, constexprs=constants)
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            found[f"{name}/sm_{capability}"] = {
                **resources(compiled.asm["cubin"]),
                "shared": compiled.metadata.shared,
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
