"""Memory of this process, as the kernel counts it: whatever any library allocates."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> bool:
    """Begin a new high-water mark; False where the system has none (only Linux has)."""
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
    """The most since :func:`forget_peak` (on Linux alone)."""
    return _kilobytes("VmHWM") * 1024


def resident_bytes() -> int:
    """What is held now (on Linux alone)."""
    return _kilobytes("VmRSS") * 1024


def _kilobytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])
