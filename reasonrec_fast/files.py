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
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Read = TypeVar("Read")
_READINGS = 10


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
def replacing_folder(folder: str | Path, owned: Collection[str]) -> Iterator[Path]:
    """Give a temporary folder beside ``folder``; when the block ends without an error it takes its place, whole.

    Whoever reads, and whatever is killed, finds all old files or all new ones. On Linux the two folders change places
    in one step; elsewhere, for a moment, there is none. A folder that cannot change places (the root of a file system,
    the one that the process is in, one in a folder that is not ours to write) is filled file by file, ``config.json``
    last.

    Args:
        folder: to be written; it need not be there.
        owned: names of files that belong to what is written, in this version and earlier ones: they do not outlive it.
            Everything else that lies in the folder stays.

    Raises:
        OSError: nothing can be written there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     for name in ("first", "second"):
    ...         with replacing_folder(Path(place, "made"), {"first", "second"}) as temporary:
    ...             _ = Path(temporary, name).write_text("whole")
    ...     [path.name for path in Path(place, "made").iterdir()]
    ['second']
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    here = Path.cwd()
    stays = folder.is_dir() and (
        folder.is_mount() or folder in (here, *here.parents) or not os.access(folder.parent, os.W_OK)
    )
    place = folder if stays else folder.parent
    temporary = place / f".{folder.name}.{os.getpid()}.{threading.get_ident()}.saving"
    for left in place.glob(f".{glob.escape(folder.name)}.*.saving"):  # by processes that were killed
        if left == temporary or not _runs(left.name):
            shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        written = {path.name for path in temporary.iterdir()}
        if not folder.exists():
            temporary.rename(folder)
        elif stays or not _change_places(temporary, folder, {*written, *owned}):
            for name in ("config.json", *sorted({*owned, *written})):  # killed from here on, it leaves no model
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


def _runs(name: str) -> bool:
    """Whether the process runs that made a temporary folder of this name."""
    try:
        os.kill(int(name.split(".")[-3]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _change_places(new: Path, old: Path, replaced: Collection[str]) -> bool:
    """Put one folder in another's place, with what the other holds besides; False where that cannot be done."""
    shutil.copymode(old, new)
    for path in old.iterdir():
        if path.name not in replaced:
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, new / path.name, symlinks=True, copy_function=_linked)
            else:
                _linked(path, new / path.name)
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if libc.renameat2(here, os.fsencode(new), here, os.fsencode(old), exchange) == 0:
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


def _linked(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def read_whole(folder: str | Path, read: Callable[[], Read]) -> Read:
    """What the files of a saved model hold: all of the model before, or all of that which took its place meanwhile.

    Raises:
        ValueError: the files do not belong together, whatever one of them lacks or has too much of, or other models
            take its place all the time.

    >>> read_whole("model", lambda: {}["config"])
    Traceback (most recent call last):
    ValueError: model: expected the files of one saved model; KeyError: 'config'
    """
    import torch

    for _ in range(_READINGS):
        before = _identity(folder)
        try:
            found = read()
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError, RuntimeError) as error:
            if _identity(folder) != before:
                continue
            if isinstance(error, OSError | ValueError):
                raise
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(f"{folder}: expected the files of one saved model; {told}") from error
        if _identity(folder) == before:
            return found
    raise ValueError(f"{folder}: other models took its place while it was read, {_READINGS} times; load it again")


def _identity(folder: str | Path) -> tuple[int, ...]:
    """Of a folder and its ``config.json``; a number of a file may be given again, a moment with it may not."""
    try:
        place, settings = Path(folder).stat(), Path(folder, "config.json").stat()
    except OSError:
        return ()
    return place.st_dev, place.st_ino, settings.st_ino, settings.st_ctime_ns


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
    ``~/.cache``.

    Raises:
        FileNotFoundError: the user has no home, as in a container that runs under a number alone.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (given if given.is_absolute() else Path("~/.cache").expanduser()) / "reasonrec-fast"
    except RuntimeError as error:
        raise FileNotFoundError("the user has no home; set HOME or XDG_CACHE_HOME") from error


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
