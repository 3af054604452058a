"""Text files: decompressed, decoded as UTF-8, parsed as strict JSON. Errors name the line and the byte."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.files import unique_keys

BOM = b"\xef\xbb\xbf"
"""The byte order mark of UTF-8."""


def contents(path: Path) -> bytes:
    """The bytes of a file, decompressed if its name ends in ``.gz``.

    Raises:
        DataError: the compressed data is corrupt.
    """
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as gz: {error}") from error


def text_lines(data: bytes, path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield the non-blank lines of UTF-8 text with their numbers from 1, without a byte order mark. Only line feeds
    (with or without a carriage return before) end a line, not the other separators of ``str.splitlines``.

    Raises:
        DataError: invalid UTF-8 (the message names line and byte).
    """
    start = len(BOM) if data.startswith(BOM) else 0
    for number, line in enumerate(data[start:].split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError:
            raise not_utf8(data, path) from None
        if text.strip(" \t"):
            yield number, text


def records(data: bytes, path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON lines file with their line numbers from 1.

    Raises:
        DataError: a line that is not a JSON object, has a duplicate key, or a number that is not JSON (such as NaN).
    """
    for number, text in text_lines(data, path):
        wrong = f"{path}: cannot be read as jsonl: line {number}: expected"
        try:
            record = parsed(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{wrong} JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{wrong} an object; got {text:.80}")
        yield number, record


def parsed(text: str) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError, RecursionError: invalid JSON, a duplicate key, NaN or infinity, or half of a surrogate pair.
    """
    value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()  # raises for half of a surrogate pair, which UTF-8 cannot encode
    return value


def _refuse_constant(word: str) -> float:
    raise ValueError(f"expected a number; got {word}")


def not_utf8(data: bytes, path: str | Path) -> DataError:
    """The error of bytes that are not UTF-8, with line and byte; a caller raises it."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return DataError(
            f"{path}, line {line}: expected UTF-8; got the byte 0x{data[error.start]:02x} at {error.start}: save the "
            "file as UTF-8"
        )
    raise AssertionError("UTF-8 after all")
