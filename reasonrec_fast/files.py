"""Files that are never seen half-written."""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

_LAST = "config.json"
"""Of a model: without it there is none."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` when the block ends without an error.

    The file has the permissions that the umask leaves, whatever the library that writes it would give it. Where the
    path is a link, the file that it leads to is replaced, and the link stays.

    Raises:
        OSError: nothing can be written there, or it is something else than a file, such as a pipe or a device.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "a.txt")) as temporary:
    ...         _ = temporary.write_text("whole")
    ...     Path(folder, "a.txt").read_text()
    'whole'
    """
    path = _file_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # of no two writers, and no longer where the name is
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # of a file that is open: which one is not said
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: str | Path, names: Iterable[str]) -> Iterator[Path]:
    """Give a temporary folder for the files of a saved model; they take the place of those in ``folder`` when the block
    ends without an error. Else these stay as they were.

    Whoever is killed while they change places leaves no ``config.json``, so that files of two models are never read as
    one.

    Args:
        folder: is made where it is not there. Files of other names stay.
        names: of all that such a model may have; what is not written anew is taken away.

    Raises:
        OSError: nothing can be written there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     for name in "ab":
    ...         with replacing_files(place, ["a.json", "b.json"]) as temporary:
    ...             write_json(temporary / f"{name}.json", 1)
    ...     [path.name for path in Path(place).iterdir()]
    ['b.json']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{secrets.token_hex(8)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        written = sorted((path.name for path in temporary.iterdir()), key=lambda name: (name == _LAST, name))
        for name in (_LAST, *sorted({*names, *written})):
            _remove(folder / name)
        for name in written:
            (temporary / name).rename(folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _file_of(path: str | Path) -> Path:
    """What a path leads to, which is a file or not there."""
    path = Path(path)
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    if path.exists() and not path.is_file():
        number = errno.EISDIR if path.is_dir() else errno.EEXIST
        told = os.strerror(number) if path.is_dir() else "expected a file; there is something else"
        raise OSError(number, told, str(path))
    return path


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
    try:
        path = _file_of(path)
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


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Keep other processes that ask for the same file waiting, so that what is read, changed and written is all there.

    Raises:
        OSError: nothing can be written there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place, alone_with(Path(place, "a.jsonl")):
    ...     pass
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)  # a folder stays when files in it are replaced
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # a process that is killed lets it go
        yield
    finally:
        os.close(descriptor)


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


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read safetensors to the host.

    Raises:
        ValueError: the file is something else, or cut off (its path is named).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected safetensors; {error}") from error


@contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """Say of a model's folder, whatever its files lack or have too much of, that they do not belong together; and
    that another model took its place (:func:`replacing_files`) while it was read.

    Raises:
        ValueError: they do not, or one did.

    >>> with reading("model"):
    ...     {}["config"]
    Traceback (most recent call last):
    ValueError: model: expected the files of one saved model; KeyError: 'config'
    """
    import torch

    before = _stamp(Path(folder))
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (KeyError, IndexError, AttributeError, TypeError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{folder}: expected the files of one saved model; {type(error).__name__}: {told}") from error
    if _stamp(Path(folder)) != before:
        raise ValueError(f"{folder}: another model took its place while it was read; load it again")


def _stamp(folder: Path) -> tuple[int, int] | None:
    """What tells a saved model from the next one in its folder."""
    try:
        found = (folder / _LAST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


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
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON; {error}") from error
