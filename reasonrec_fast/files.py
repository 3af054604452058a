"""Atomic writing of files and folders: readers never see a partly written one."""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Read = TypeVar("Read")
_MAX_READS = 10


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Atomic write: yields a temporary path beside ``path``, and renames it to ``path`` if the block succeeds.

    The file gets the permissions of the umask, whichever library writes it. If the path is a symbolic link, its target
    is replaced and the link stays.

    Raises:
        OSError: the path cannot be written, or is not a regular file (such as a pipe or a device).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder, "a.txt")) as temporary:
    ...         _ = temporary.write_text("whole")
    ...     Path(folder, "a.txt").read_text()
    'whole'
    """
    path = _target_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # unique to a writer; short even if the name is long
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # an error of an open file does not name it
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write_folder(folder: str | Path, owned: Collection[str]) -> Iterator[Path]:
    """Atomic write of a folder: yields a temporary folder, which replaces ``folder`` if the block succeeds.

    A reader finds, and a process killed at any moment leaves, either all old files or all new ones. On Linux the two
    folders are exchanged in one system call; elsewhere there is a moment without a folder. A folder that cannot be
    exchanged (a mount point, the working directory or a parent of it, or one whose parent is not writable) is filled
    file by file, ``config.json`` last.

    Args:
        folder: to be written; it need not exist.
        owned: names of the files that this and earlier versions write; old ones are removed. All other files in the
            folder are kept.

    Raises:
        OSError: the folder cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     for name in ("first", "second"):
    ...         with atomic_write_folder(Path(parent, "saved"), {"first", "second"}) as temporary:
    ...             _ = Path(temporary, name).write_text("whole")
    ...     [path.name for path in Path(parent, "saved").iterdir()]
    ['second']
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    working_folder = Path.cwd()
    in_place = folder.is_dir() and (
        folder.is_mount()
        or folder in (working_folder, *working_folder.parents)
        or not os.access(folder.parent, os.W_OK)
    )
    parent = folder if in_place else folder.parent
    temporary = parent / f".{folder.name}.{os.getpid()}.{threading.get_ident()}.saving"
    for leftover in parent.glob(f".{glob.escape(folder.name)}.*.saving"):  # of killed processes
        if leftover == temporary or not _is_running(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        written = {path.name for path in temporary.iterdir()}
        if not folder.exists():
            temporary.rename(folder)
        elif in_place or not _exchange(temporary, folder, {*written, *owned}):
            for name in (
                "config.json",
                *sorted({*owned, *written}),
            ):  # without config.json no half-replaced model loads
                _remove(folder / name)
            for name in sorted(written, key=lambda name: name == "config.json"):
                (temporary / name).rename(folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_running(name: str) -> bool:
    """Whether the process that created a temporary folder of this name is still running."""
    try:
        os.kill(int(name.split(".")[-3]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _exchange(new: Path, old: Path, replaced: Collection[str]) -> bool:
    """Exchange two folders, after linking the files of ``old`` that are kept into ``new``; False where impossible."""
    shutil.copymode(old, new)
    for path in old.iterdir():
        if path.name not in replaced:
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, new / path.name, symlinks=True, copy_function=_link_or_copy)
            else:
                _link_or_copy(path, new / path.name)
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        at_fdcwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if libc.renameat2(at_fdcwd, os.fsencode(new), at_fdcwd, os.fsencode(old), exchange) == 0:
            return True
        if ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL):
            return False
    aside = new.with_suffix(".old")
    try:
        old.rename(aside)
    except OSError:
        return False
    new.rename(old)
    shutil.rmtree(aside)
    return True


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def read_consistent(folder: str | Path, read: Callable[[], Read]) -> Read:
    """Call ``read`` so that all files come from the same saved model, even if the folder is replaced meanwhile.

    A replaced folder is detected by its identity before and after, and read again.

    Raises:
        ValueError: the files do not belong together, or the folder was replaced during every attempt.

    >>> read_consistent("model", lambda: {}["config"])
    Traceback (most recent call last):
    ValueError: model: expected the files of one saved model; KeyError: 'config'
    """
    import torch

    for _ in range(_MAX_READS):
        before = _identity(folder)
        try:
            value = read()
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError, RuntimeError) as error:
            if _identity(folder) != before:
                continue
            if isinstance(error, OSError | ValueError):
                raise
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(f"{folder}: expected the files of one saved model; {message}") from error
        if _identity(folder) == before:
            return value
    raise ValueError(f"{folder}: other models took its place while it was read, {_MAX_READS} times; load it again")


def _identity(folder: str | Path) -> tuple[int, ...]:
    """Identifies a version of a saved folder. The change time is included because inode numbers are reused."""
    try:
        folder_stat, config_stat = Path(folder).stat(), Path(folder, "config.json").stat()
    except OSError:
        return ()
    return folder_stat.st_dev, folder_stat.st_ino, config_stat.st_ino, config_stat.st_ctime_ns


def _target_file(path: str | Path) -> Path:
    """The path with a symbolic link resolved; an error if it exists and is not a regular file."""
    path = Path(path)
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    if path.exists() and not path.is_file():
        number = errno.EISDIR if path.is_dir() else errno.EEXIST
        message = os.strerror(number) if path.is_dir() else "expected a file; there is something else"
        raise OSError(number, message, str(path))
    return path


def check_writable(path: str | Path) -> None:
    """Check before a long computation that its result can be written; leaves no file behind.

    Args:
        path: of a file, which may exist; its folder need not.

    Raises:
        OSError: it cannot be written.

    >>> check_writable("/dev/null/model.safetensors")
    Traceback (most recent call last):
    NotADirectoryError: [Errno 20] Not a directory: '/dev/null/model.safetensors'
    """
    try:
        path = _target_file(path)
        existing_folder = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=existing_folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def create_folder_once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Create a folder atomically; of several processes that need it, one fills it and the others wait.

    The next process to fill the folder removes what a killed one left.

    Args:
        folder: to be created; nothing is done if it exists.
        fill: writes files into a temporary folder beside it, which is then renamed.

    Raises:
        OSError: the folder cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     create_folder_once(Path(parent, "cached"), lambda temporary: write_json(temporary / "a.json", 1))
    ...     read_json(Path(parent, "cached", "a.json"))
    1
    """
    import fcntl

    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it if the process is killed
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
def file_lock(path: Path) -> Iterator[None]:
    """Lock a file between processes, so that a read-modify-write of it loses no update.

    The lock is on the file's folder: it also excludes users of other files in that folder.

    Raises:
        OSError: the folder cannot be created or opened.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, file_lock(Path(folder, "a.jsonl")):
    ...     pass
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)  # unlike the file, the folder is not replaced by a write
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the system releases it if the process is killed
        yield
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """The package's cache folder: ``reasonrec-fast`` in ``XDG_CACHE_HOME``, by default in ``~/.cache``.

    Raises:
        FileNotFoundError: the user has no home directory, as in a container that runs under a bare user id.
    """
    xdg_cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (xdg_cache if xdg_cache.is_absolute() else Path("~/.cache").expanduser()) / "reasonrec-fast"
    except RuntimeError as error:
        raise FileNotFoundError("the user has no home; set HOME or XDG_CACHE_HOME") from error


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors of any device as safetensors, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        try:
            save_file(on_host, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written; {error}") from error


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read safetensors into host memory.

    Raises:
        ValueError: the file has another format or is truncated (the message names it).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected safetensors; {error}") from error


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read JSON, with or without a byte order mark.

    Raises:
        ValueError: the file is not JSON, or an object has a key twice (the message names it).
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON; {error}") from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's pairs as a dict; of a key that occurs twice, json would keep the last value without a word.

    Raises:
        ValueError: such a key.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"expected each key once; got {[name for name, _ in pairs]}")
    return values
