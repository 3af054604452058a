"""Loads the native libraries: ``_C`` when the package is imported, ``_C_cuda`` when torch initialises CUDA.

Importing the package does not initialise CUDA, so that a process may fork afterwards.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parent.parent
OLDEST_CAPABILITY = (8, 0)  # of the architectures that CMakeLists.txt names
_BUILD = "build it again with pip install --no-build-isolation . (see README.md)"
_logger = logging.getLogger("reasonrec_fast")


def load(folder: Path = FOLDER) -> None:
    """Load ``_C``, which has all operator schemas and the CPU operators.

    Raises:
        ImportError: the library is missing, or does not load (with the reason).
    """
    library = folder / "_C.so"
    if not library.is_file():
        raise ImportError(f"reasonrec_fast: the native library {library} is not there; {_BUILD}")
    try:
        torch.ops.load_library(str(library))
    except OSError as problem:
        raise ImportError(
            f"reasonrec_fast: the native library {library} does not load beside torch {torch.__version__} "
            f"(2.11 is the oldest it serves): {_reason(problem)}; {_BUILD}"
        ) from problem


def implement_on_gpu(plain: Mapping[str, Callable[..., Any]]) -> None:
    """Register CUDA implementations when torch initialises CUDA: those of ``_C_cuda``, or of ``plain`` without it.

    Args:
        plain: the plain torch implementation of each operator of ``_C_cuda``, for where that library cannot be used.
    """

    def decide() -> None:
        if load_cuda():
            return
        for name, function in plain.items():
            torch.library.impl(f"reasonrec_fast::{name}", "CUDA", function)

    torch.cuda._lazy_call(decide)  # immediately if CUDA is initialised already


def load_cuda(folder: Path = FOLDER) -> bool:
    """Load ``_C_cuda``; CUDA must be initialised.

    Logs one warning with the reason where the library cannot be used, or with the names of the GPUs that it does not
    support where it supports others.

    Returns:
        Whether the library was loaded.
    """
    library = folder / "_C_cuda.so"
    old = _old_gpus()
    problem = _unusable_because(library, old)
    if problem is None:
        try:
            torch.ops.load_library(str(library))
            if old:
                names = ", ".join(f"{name} with {_dotted(capability)}" for name, capability in old.items())
                _logger.warning("route: does not run on %s: %s", names, _EXPECTED)
            return True
        except OSError as error:
            problem = (
                f"{library} does not load beside torch {torch.__version__} for CUDA {torch.version.cuda}: "
                f"{_reason(error)}; {_BUILD}"
            )
    _logger.warning("route: plain torch runs on the GPU (slower): %s", problem)
    return False


def _old_gpus() -> dict[str, tuple[int, int]]:
    """Visible GPUs that are too old for the CUDA library, with their compute capabilities."""
    if torch.version.cuda is None:
        return {}
    capabilities = {index: torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return {
        f"cuda:{index} ({torch.cuda.get_device_name(index)})": capability
        for index, capability in capabilities.items()
        if capability < OLDEST_CAPABILITY
    }


def _unusable_because(library: Path, old: Mapping[str, tuple[int, int]]) -> str | None:
    if torch.version.cuda is None:
        return f"the CUDA library needs a torch for CUDA; torch {torch.__version__} is for another GPU"
    if old and len(old) == torch.cuda.device_count():
        return f"{_EXPECTED}; " + ", ".join(f"{name} has {_dotted(capability)}" for name, capability in old.items())
    if not library.is_file():
        return f"the CUDA library {library} is not there; put nvcc on PATH and {_BUILD}"
    return None


def driver_problem() -> str | None:
    """One line of text if the NVIDIA driver is too old for torch, else None. CUDA is not initialised.

    A driver supports every build for its own major version of CUDA and for older ones.
    """
    if torch.version.cuda is None:
        return None
    driver = _driver_version()
    if driver is None or driver[0] >= int(torch.version.cuda.split(".")[0]):
        return None
    return (
        f"the NVIDIA driver serves CUDA {_dotted(driver)}, and torch {torch.__version__} is for CUDA "
        f"{torch.version.cuda}: the GPU cannot be used and the CPU goes on; update the driver, or install a torch for "
        f"CUDA {driver[0]}"
    )


def _driver_version() -> tuple[int, int] | None:
    """The newest CUDA version that the installed driver supports; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _reason(problem: OSError) -> str:
    """The loader's message: torch's own error only names the file, and has the loader's error as its cause."""
    return str(problem.__cause__ or problem)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


_EXPECTED = f"the CUDA library expects GPUs of compute capability {_dotted(OLDEST_CAPABILITY)} or newer"

load()
if (_problem := driver_problem()) is not None:
    _logger.warning(_problem)
