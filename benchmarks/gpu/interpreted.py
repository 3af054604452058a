"""Runs the operators' GPU implementations on CPU tensors in Triton's interpreter, for rehearsals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import reasonrec_fast.ops  # noqa: F401 (registers the operators)

OPERATORS = ("exit_confidence", "token_logprobs", "token_logprobs_backward", "aggregate", "topk", "packed_attention")


@contextmanager
def kernels_on_cpu() -> Iterator[None]:
    """Dispatch CPU tensors to the CUDA implementations; ``TRITON_INTERPRET=1`` must be set before Triton is imported.

    The interpreter has no products of bfloat16.
    """

    def as_on_gpu(name: str) -> Callable[..., Any]:
        kernel = torch.library.get_kernel(f"reasonrec_fast::{name}", "CUDA")
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        return lambda *arguments: kernel.call_boxed(keys, *arguments)

    # Ignore numpy's warnings of divisions by zero in masked lanes, and torch's of each replaced operator.
    with warnings.catch_warnings(), torch.library._scoped_library("reasonrec_fast", "IMPL") as library:
        warnings.simplefilter("ignore")
        for name in OPERATORS:
            library.impl(name, as_on_gpu(name), "CPU", allow_override=True)
        yield
