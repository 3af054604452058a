"""The native libraries, and the helpers with which operators register themselves."""

from __future__ import annotations

from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent.parent


def _load() -> None:
    library = _FOLDER / "_C.so"
    if not library.is_file():
        raise ImportError(
            f"reasonrec_fast: the native library {library} is not there; build it with "
            "pip install --no-build-isolation . (see README.md)"
        )
    torch.ops.load_library(str(library))


_load()


