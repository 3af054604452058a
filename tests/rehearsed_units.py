"""Units of a worker that go wrong in every way; ``test_gpu_rehearsal.py`` runs them."""

import os
import time

from benchmarks.gpu.device import CaptureFailed


def units(device):
    return ["good", "raises", "dies", "hangs", "breaks-capture", "never-captures", "last"]


def run(unit, device, emit, done):
    if unit == "raises":
        raise ValueError("x: expected 1; got 2")
    if unit == "dies":
        os._exit(7)
    if unit == "hangs":
        time.sleep(60)
    if unit == "breaks-capture":
        if "breaks-capture/first" not in done:
            emit({"part": "first", "problem": "no graph"})
            raise CaptureFailed("operation not permitted when stream is capturing")
        emit({"part": "second"})
        return
    if unit == "never-captures":
        emit({"value": 0.0})  # no part: nothing would be spared by a new process
        raise CaptureFailed("operation not permitted when stream is capturing")
    emit({"value": 1.0, "threads": os.environ.get("OMP_NUM_THREADS")})
