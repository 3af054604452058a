"""A cache of image features on disk: memory-mapped, append-only, crash-safe, shared between processes.

A folder holds three files. ``observations.json`` has the identity of the encoder. ``features.bin`` has a record
of float32 ``[T, F]`` for each image. ``index.bin`` has 40 bytes a record: the image's key, a checksum of its features,
and a checksum of these two.

A writer holds a lock (of the operating system, which releases it when a process is killed), appends features after the
last indexed record, and then the index entries. A record exists once its 40 bytes are complete; the incomplete data of
a killed writer is overwritten by the next. Records never change, and readers need no lock. After a power failure a
record may be indexed whose features were not written to the disk; its checksum shows it, and it is computed again.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from reasonrec_fast.data.images import MAX_PIXELS, ImageSource, RGBImage, read_images
from reasonrec_fast.files import file_lock, read_json, write_json
from reasonrec_fast.lm.image_encoder import ImageEncoder, encoder_identity, first_difference

_logger = logging.getLogger("reasonrec_fast")
_FORMAT = "reasonrec-fast observations 1"
_IDENTITY, _FEATURES, _INDEX = "observations.json", "features.bin", "index.bin"
_KEY_BYTES = 32
_ENTRY = struct.Struct(f"<{_KEY_BYTES}sI")  # key, checksum of the features
_CHECKSUM = struct.Struct("<I")  # of the entry
_ENTRY_BYTES = _ENTRY.size + _CHECKSUM.size


class _Index(NamedTuple):
    """The part of an index file that was read.

    Attributes:
        inode: of the file.
        size: complete entries in it.
        records: index of the record and checksum of its features, by key.
    """

    inode: int
    size: int
    records: dict[bytes, tuple[int, int]]


class ObservationCache:
    """Features by image key, in a folder.

    Any number of threads and processes may read and write the same folder. The folder is created by the
    first :meth:`put`.

    Args:
        folder: of the cache, with the features of one encoder.
        encoder: whose features they are.
        max_bytes: of features and index together; records that would exceed it are not stored. Records are never
            removed, so that readers need no lock: delete the folder to start again. By default there is no limit.

    Raises:
        ValueError: the folder holds features of another encoder or other settings, or something else.
        OSError: the folder exists and cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str], encoder: ImageEncoder, *, max_bytes: int | None = None) -> None:
        if max_bytes is not None and (isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0):
            raise ValueError(f"max_bytes: expected none or a whole number of at least 0; got {max_bytes!r}")
        self.folder, self.max_bytes = Path(folder).absolute(), max_bytes
        self.identity = {"format": _FORMAT, **encoder_identity(encoder)}
        self.shape = (encoder.tokens, encoder.width)
        self._record_bytes = 4 * encoder.tokens * encoder.width
        # Replaced as a whole, since readers take no lock (which a fork would inherit).
        self._index = _Index(0, 0, {})
        self._mapping = 0, np.zeros((0, *self.shape), dtype="<f4")  # inode of a file, and the features in it
        self._check_identity()
        self._refresh()

    def __len__(self) -> int:
        return len(self._index.records)

    def __iter__(self) -> Iterator[bytes]:
        """The keys of all images that are cached."""
        return iter(list(self._refresh().records))

    def get(self, keys: Sequence[bytes]) -> tuple[torch.Tensor, list[int]]:
        """Features of images by their keys.

        Args:
            keys: :attr:`RGBImage.key <reasonrec_fast.data.images.RGBImage.key>` of each.

        Returns:
            float32 ``[B, T, F]``, and the rows that are not cached or whose checksum is wrong; these are zeros.

        Raises:
            ValueError: a key that is not 32 bytes.
        """
        _check_keys(keys)
        known = self._index.records
        if any(key not in known for key in keys):
            known = self._refresh().records
        entries = [known.get(key) for key in keys]
        mapped = self._mapped()  # after the look-up, so that it covers what another thread has appended
        result = np.zeros((len(keys), *self.shape), dtype=np.float32)
        missing = []
        for row, entry in enumerate(entries):
            if entry is not None and entry[0] < len(mapped):
                result[row] = mapped[entry[0]]
                if zlib.crc32(result[row].data) == entry[1]:
                    continue
                result[row] = 0
            if entry is not None and known.get(keys[row]) is entry:
                known.pop(keys[row], None)  # a wrong checksum: it is to be appended again
            missing.append(row)
        return torch.from_numpy(result), missing

    def put(self, keys: Sequence[bytes], features: torch.Tensor) -> int:
        """Append the features that are not cached yet.

        Args:
            keys: of the images, 32 bytes each.
            features: float32 ``[B, T, F]``.

        Returns:
            how many of ``keys`` are in the cache now; the others did not fit into ``max_bytes``.

        Raises:
            ValueError: features of another shape or type, keys of another length, or another encoder's features were
                put into the folder meanwhile.
            OSError: the folder cannot be written, as on a full disk. The cache remains valid.
        """
        _check_keys(keys)
        if features.dtype != torch.float32 or tuple(features.shape) != (len(keys), *self.shape):
            expected = [len(keys), *self.shape]
            raise ValueError(f"features: expected float32 {expected}; got {features.dtype} {list(features.shape)}")
        values = np.ascontiguousarray(features.detach().cpu().numpy(), dtype="<f4")
        with file_lock(self.folder / _INDEX):
            if not self._check_identity():
                write_json(self.folder / _IDENTITY, self.identity)
            index = self._refresh()
            new = {key: row for row, key in enumerate(keys) if key not in index.records}
            if self.max_bytes is not None:
                room = self.max_bytes // (self._record_bytes + _ENTRY_BYTES) - index.size
                new = dict(islice(new.items(), max(room, 0)))
            if new:
                self._append(index.size, list(new), values[list(new.values())])
                index = self._refresh()
        return sum(key in index.records for key in keys)

    def _refresh(self) -> _Index:
        """Read the entries that were appended meanwhile; under the file's lock the result is complete."""
        inode, begin, records = self._index
        try:
            with (self.folder / _INDEX).open("rb") as file:
                status = os.fstat(file.fileno())
                count = status.st_size // _ENTRY_BYTES
                if status.st_ino != inode or count < begin:  # new, truncated, or replaced
                    self._check_identity()
                    begin, records = 0, {}
                file.seek(begin * _ENTRY_BYTES)
                content = file.read((count - begin) * _ENTRY_BYTES)
        except FileNotFoundError:
            self._index = _Index(0, 0, {})
            return self._index
        for record, at in enumerate(range(0, len(content), _ENTRY_BYTES), start=begin):
            entry = content[at : at + _ENTRY.size]
            if content[at + _ENTRY.size : at + _ENTRY_BYTES] == _CHECKSUM.pack(zlib.crc32(entry)):
                key, checksum = _ENTRY.unpack(entry)
                records[key] = record, checksum
        self._index = _Index(status.st_ino, count, records)
        return self._index

    def _append(self, count: int, keys: list[bytes], values: np.ndarray) -> None:
        """Write records after the first ``count``; data there is of an incomplete write and is overwritten."""
        entries = b"".join(_entry(key, zlib.crc32(value.data)) for key, value in zip(keys, values, strict=True))
        _write_at(self.folder / _FEATURES, count * self._record_bytes, values.tobytes())
        _write_at(self.folder / _INDEX, count * _ENTRY_BYTES, entries)

    def _mapped(self) -> np.ndarray:
        """The records in the file, ``[N, T, F]``.

        Mapped again whenever the file was replaced or has another length: reading a mapping beyond the end of a
        truncated file would kill the process.
        """
        empty = np.zeros((0, *self.shape), dtype="<f4")
        try:
            with (self.folder / _FEATURES).open("rb") as file:
                status = os.fstat(file.fileno())
                count = status.st_size // self._record_bytes
                inode, known = self._mapping
                if inode != status.st_ino or len(known) != count:
                    known = empty
                    if count:
                        memory = mmap.mmap(file.fileno(), count * self._record_bytes, access=mmap.ACCESS_READ)
                        known = np.frombuffer(memory, dtype="<f4").reshape(count, *self.shape)
                    self._mapping = status.st_ino, known
                return known
        except FileNotFoundError:
            return empty

    def _check_identity(self) -> bool:
        """True if the folder is a cache of this encoder, False if it is empty; other contents are refused."""
        path = self.folder / _IDENTITY
        try:
            identity = read_json(path)
        except FileNotFoundError:
            if (self.folder / _INDEX).exists() or (self.folder / _FEATURES).exists():
                raise ValueError(f"{self.folder}: expected {_IDENTITY} beside {_INDEX}; there is none") from None
            return False
        if not isinstance(identity, Mapping) or identity.get("format") != _FORMAT:
            raise ValueError(f"{path}: expected {_FORMAT!r}; got something else")
        if difference := first_difference(self.identity, identity):
            name, expected, got = difference
            raise ValueError(
                f"{self.folder}: expected a cache of {name} {expected!r}; it was made with {got!r}; give each encoder "
                "a folder of its own"
            )
        return True


class CachedEncoder:
    """An image encoder that computes each image once and keeps its features in a folder.

    It is an :class:`~reasonrec_fast.lm.image_encoder.ImageEncoder` itself. If the cache cannot be written, as on a
    full disk, or has reached ``max_bytes``, a warning is logged and features are computed each time.

    Args:
        encoder: computes the features.
        folder, max_bytes: of :class:`ObservationCache`.
        batch_size: images that are computed and then stored together: the most that are lost when a process is killed.

    Raises:
        ValueError: the folder holds another encoder's features.

    Attributes:
        cache: the cache.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        folder: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        batch_size: int = 16,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size: expected a whole number of at least 1; got {batch_size!r}")
        self.encoder, self.batch_size = encoder, batch_size
        self.cache = ObservationCache(folder, encoder, max_bytes=max_bytes)
        self._full = False

    @property
    def name(self) -> str:
        """Of the encoder."""
        return self.encoder.name

    @property
    def digest(self) -> str:
        """Of the encoder."""
        return self.encoder.digest

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the encoder."""
        return self.encoder.settings

    @property
    def tokens(self) -> int:
        """Of the encoder."""
        return self.encoder.tokens

    @property
    def width(self) -> int:
        """Of the encoder."""
        return self.encoder.width

    def encode(
        self,
        images: Iterable[ImageSource],
        *,
        folder: str | os.PathLike[str] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> torch.Tensor:
        """Features on the CPU, float32 ``[B, T, F]``, as the encoder gives them.

        Every image is decoded, since its key is a digest of its pixels. Callers that have the keys can read
        :attr:`cache`.

        Args:
            images: what :func:`~reasonrec_fast.data.images.read_image` takes.
            folder, max_pixels: as there.

        Raises:
            DataError: an image that cannot be read; its row is named. Features that were computed before it are cached.
        """
        decoded = read_images(images, folder=folder, max_pixels=max_pixels)
        parts = [torch.zeros(0, self.tokens, self.width)]
        while window := list(islice(decoded, self.batch_size)):
            parts.append(self._encode_window(window, max_pixels))
        return torch.cat(parts)

    def _encode_window(self, images: list[RGBImage], max_pixels: int) -> torch.Tensor:
        keys = [image.key for image in images]
        features, missing = self.cache.get(keys)
        to_compute = {keys[row]: images[row] for row in missing}
        if to_compute:
            new = self.encoder.encode(list(to_compute.values()), max_pixels=max_pixels)
            self._keep(list(to_compute), new)
            position = {key: index for index, key in enumerate(to_compute)}
            features[missing] = new[[position[keys[row]] for row in missing]]
        return features

    def _keep(self, keys: list[bytes], features: torch.Tensor) -> None:
        try:
            reason = (
                "" if self.cache.put(keys, features) == len(keys) else f"it has reached {self.cache.max_bytes} bytes"
            )
        except OSError as error:
            reason = f"it cannot be written; {error}"
        if reason and not self._full:
            _logger.warning("%s: features are computed and not kept, since %s", self.cache.folder, reason)
        self._full = bool(reason)


def _check_keys(keys: Sequence[bytes]) -> None:
    for row, key in enumerate(keys):
        if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
            got = f"{len(key)} bytes" if isinstance(key, bytes) else repr(key)
            raise ValueError(f"keys[{row}]: expected {_KEY_BYTES} bytes; got {got}")


def _entry(key: bytes, checksum: int) -> bytes:
    entry = _ENTRY.pack(key, checksum)
    return entry + _CHECKSUM.pack(zlib.crc32(entry))


def _write_at(path: Path, begin: int, content: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        written = 0
        while written < len(content):
            written += os.pwrite(descriptor, memoryview(content)[written:], begin + written)
    except OSError:
        if os.fstat(descriptor).st_size > begin:
            os.ftruncate(descriptor, begin)  # free the incomplete data on a full disk
        raise
    finally:
        os.close(descriptor)
