"""What a fit of a stack has ready, kept on disk until it has ended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reasonrec_fast.arrays import as_tensor
from reasonrec_fast.files import read_json, read_tensors, write_json, write_tensors
from reasonrec_fast.models.optirag.evidence_source import Arrays, Make

_IDENTITY = "run.json"


class FitState:
    """A folder ``<checkpoint>.tools`` of a fit.

    Args:
        checkpoint: of the fit; None keeps nothing.
        identity: what the run depends on.

    Raises:
        ValueError: the folder is of another run, or nothing tells of which.
    """

    def __init__(self, checkpoint: str | Path | None, identity: Mapping[str, Any]) -> None:
        self.folder = None if checkpoint is None else Path(f"{checkpoint}.tools")
        if self.folder is None:
            return
        expected, file = json.loads(json.dumps(identity)), self.folder / _IDENTITY
        if file.is_file() and read_json(file) != expected:
            raise ValueError(
                f"checkpoint: expected one of this configuration and these events; {self.folder} is of another run. "
                "Give another checkpoint, or remove the folder to start again"
            )
        if self.folder.is_dir() and not file.is_file():  # hidden files are what a killed writer has left
            strange = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
            if strange:
                raise ValueError(
                    f"checkpoint: expected {self.folder} to be new, or to have the {_IDENTITY} of a fit; it has "
                    f"{strange[0]} alone. Give another checkpoint, or remove the folder to start again"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(file, expected)

    def keep(self, name: str, make: Make) -> Arrays:
        """The arrays of a name, where they are kept; otherwise they are made, and kept."""
        if self.folder is None:
            return make()
        file = self.folder / f"{name}.safetensors"
        if file.is_file():
            return {key: value.numpy() for key, value in read_tensors(file).items()}
        arrays = make()
        write_tensors(file, {key: as_tensor(value, key) for key, value in arrays.items()})
        return arrays

    def close(self) -> None:
        """Remove the folder; what tells of which run it is goes last, as the fit may be killed meanwhile."""
        if self.folder is None:
            return
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _IDENTITY:
                path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
