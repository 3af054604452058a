"""Memory of this process as the operating system counts it, for all libraries together."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory() -> bool:
    """Reset the peak that :func:`peak_bytes` reports; False where that is impossible (it needs Linux)."""
    if not sys.platform.startswith("linux") or not _CLEAR.exists():
        return False
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Peak resident memory since :func:`reset_peak_memory`, in bytes (Linux only)."""
    return _kilobytes("VmHWM") * 1024


def resident_bytes() -> int:
    """Current resident memory, in bytes (Linux only)."""
    return _kilobytes("VmRSS") * 1024


def _kilobytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])
