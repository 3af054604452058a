"""Files that are never seen half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` when the block ends without an error.

    The file has the permissions that the umask leaves, whatever the library that writes it would give it.

    Raises:
        OSError: nothing can be written there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "a.txt")) as temporary:
    ...         _ = temporary.write_text("whole")
    ...     Path(folder, "a.txt").read_text()
    'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Find out before the work whether its result can be written; nothing is left there.

    Args:
        path: of a file, which may be there already; its folder need not be.

    Raises:
        OSError: it cannot be written.

    >>> check_writable("/dev/null/model.safetensors")
    Traceback (most recent call last):
    NotADirectoryError: [Errno 20] Not a directory: '/dev/null/model.safetensors'
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        there = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def make_folder_once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder whole or not at all; of several processes that want it one fills it, and the others wait.

    What a killed process left is taken away by the next one that fills the folder.

    Args:
        folder: to be made; nothing is done where it is there already.
        fill: writes files into a temporary folder beside it, which is renamed then.

    Raises:
        OSError: nothing can be written there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     make_folder_once(Path(place, "made"), lambda temporary: write_json(temporary / "a.json", 1))
    ...     read_json(Path(place, "made", "a.json"))
    1
    """
    import fcntl

    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a process that is killed lets it go
        if folder.is_dir():
            return
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            mode = os.fstat(lock.fileno()).st_mode
            fill(temporary)
            for path in temporary.iterdir():
                path.chmod(mode)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def cache_folder() -> Path:
    """Where the package keeps what it can make again: ``reasonrec-fast`` in ``XDG_CACHE_HOME``, by default
    ``~/.cache``."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path("~/.cache").expanduser()) / "reasonrec-fast"


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors, wherever they are, as safetensors, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(on_host, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written; {error}") from error


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read JSON, with or without a mark of the byte order.

    Raises:
        ValueError: the file is not JSON (its path is named).
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON; {error}") from error
