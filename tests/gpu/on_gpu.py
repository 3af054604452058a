"""Whether these tests run: on a GPU; in a rehearsal (``REASONREC_FAST_REHEARSAL=1``, which ``benchmarks.gpu --dry-run``
sets) on the CPU, so that no test meets a GPU for the first time with a misspelt name. Else they are skipped."""

from __future__ import annotations

import os
from typing import Any

import torch

ON_GPU = torch.cuda.is_available()
REHEARSAL = not ON_GPU and os.environ.get("REASONREC_FAST_REHEARSAL") == "1"


def parts(result: Any) -> list[torch.Tensor]:
    """The tensors that an operator returned."""
    return [result] if isinstance(result, torch.Tensor) else list(result)
