"""Loops compiled by numba, that any thread and any forked process may run.

numba's own parallel loops end the process where two threads run them at once, or a forked process after its parent:
these are plain loops over part of the rows, which let go of the interpreter's lock; :func:`in_shares` divides the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numba
import torch

Function = TypeVar("Function", bound=Callable[..., Any])

_LEAST_SHARE = 4096  # rows; starting a thread takes as long as some hundred of them


def compiled(function: Function) -> Function:
    """Compile a function at its first call, and keep the machine code in a file where one can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return numba.njit(nogil=True)(function)


def in_shares(count: int, run: Callable[[int, int], None]) -> None:
    """Call ``run(begin, end)`` on shares of ``[0, count)``, in as many threads as torch may use; they end here.

    >>> in_shares(3, lambda begin, end: print(begin, end))
    0 3
    """
    shares = max(min(torch.get_num_threads(), count // _LEAST_SHARE), 1)
    if shares == 1:
        return run(0, count)
    bounds = [count * share // shares for share in range(shares + 1)]
    with ThreadPoolExecutor(shares) as pool:
        list(pool.map(run, bounds[:-1], bounds[1:]))
