"""Loops compiled by numba that are safe in any thread and in forked processes.

numba's own parallel loops abort the process if two threads run them at once, or if a forked process runs them after its
parent did. These are plain loops over a part of the rows that release the GIL; :func:`in_shares` divides the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numba
import torch

Function = TypeVar("Function", bound=Callable[..., Any])

_LEAST_SHARE = 4096  # rows per thread; starting a thread costs as much as some hundred rows


def compiled(function: Function) -> Function:
    """Compile a function at its first call, and cache the machine code on disk if possible."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no writable cache folder, neither in the package nor of the user
        return numba.njit(nogil=True)(function)


def in_shares(count: int, run: Callable[[int, int], None]) -> None:
    """Call ``run(begin, end)`` on shares of ``[0, count)``, in as many threads as torch uses; waits for all of them.

    >>> in_shares(3, lambda begin, end: print(begin, end))
    0 3
    """
    shares = max(min(torch.get_num_threads(), count // _LEAST_SHARE), 1)
    if shares == 1:
        return run(0, count)
    bounds = [count * share // shares for share in range(shares + 1)]
    with ThreadPoolExecutor(shares) as pool:
        list(pool.map(run, bounds[:-1], bounds[1:]))
