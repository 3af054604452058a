"""Delimited text files: by Arrow where all readers of CSV agree on the fields, by Python's strict ``csv`` otherwise."""

from __future__ import annotations

import csv
import io
import re
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

from reasonrec_fast.data.columns import Source, check_distinct_names
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.text_files import BOM, contents, not_utf8

_CHUNK, _QUOTES_CHUNK = 1 << 24, 1 << 20
_FIELD_LIMIT = threading.Lock()
_RECBOLE_NAME = re.compile(r"(.+):(token|token_seq|float|float_seq)")


class DelimitedFile(NamedTuple):
    """Columns of a delimited text file.

    Attributes:
        columns: name to values, in the order of the file.
        names: all names of the header, columns that were not read included.
        plain: name to the name without its RecBole type (the name itself if it has none).
        sequences: the columns whose RecBole type is a sequence (``token_seq``, ``float_seq``).
    """

    columns: Mapping[str, Any]
    names: tuple[str, ...]
    plain: Mapping[str, str]
    sequences: tuple[str, ...]


def read_delimited(path: Path, separator: str, column_kinds: Mapping[str, str] | None) -> DelimitedFile:
    """Read a delimited text file, decompressed if its name ends in ``.gz``.

    Args:
        path: the file.
        separator: of fields; a file that is separated by ``,`` may also use ``;`` or a tab, which its header shows.
        column_kinds: as in :func:`~reasonrec_fast.data.reading.read_table`.

    Raises:
        DataError: invalid contents (with the row), duplicate names, or no rows.
    """
    source = Source(str(path))
    file: BinaryIO = io.BytesIO(contents(path)) if path.suffix == ".gz" else path.open("rb")
    with file:
        if file.read(len(BOM)) != BOM:
            file.seek(0)
        start = file.tell()
        names, separator = _header(file.read(_CHUNK), path, separator)
        check_distinct_names(names, source)
        plain, sequences = _recbole_names(names)
        file.seek(start)
        columns: Mapping[str, Any] | None = None
        has_standard_quotes, has_plain_numbers = _check_quotes(file, separator)
        if has_standard_quotes:
            kinds = _kinds_to_read(names, plain, column_kinds)
            if not has_plain_numbers:  # Arrow accepts blanks around integers, and hexadecimal ones: read them as text
                kinds = {name: "text" if kind == "integer" else kind for name, kind in kinds.items()}
            columns = _read_with_arrow(file, start, separator, kinds)
        if columns is None:
            file.seek(start)
            columns = _read_with_csv(file.read(), path, separator, names)
    if len(next(iter(columns.values()))) == 0:
        raise DataError(f"{path}: expected rows below the header; got none")
    check_distinct_names([plain[name] for name in columns], source)
    return DelimitedFile(columns, tuple(names), plain, tuple(sequences))


def _header(start: bytes, path: Path, separator: str) -> tuple[list[str], str]:
    """The names of the columns, and the separator."""
    if not start:
        raise DataError(f"{path}: expected a header and rows; got an empty file")
    try:
        header_text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4 or len(start) < _CHUNK:
            raise not_utf8(start, path) from None
        header_text = start[: error.start].decode("utf-8")  # the chunk ends within a character
    for candidate in dict.fromkeys([separator, *((";", "\t") if separator == "," else ())]):
        try:
            names = next(
                row for row in csv.reader(io.StringIO(header_text, newline=""), delimiter=candidate, strict=True) if row
            )
        except (csv.Error, StopIteration) as error:
            raise DataError(f"{path}: expected a header; {error or 'got none'}") from error
        if len(names) > 1:
            return names, candidate
    return names, separator


def _recbole_names(names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Each name without the type of RecBole's atomic files (if all names have one), and the columns of sequences."""
    matches = {name: _RECBOLE_NAME.fullmatch(name) for name in names}
    if not all(matches.values()):
        return {name: name for name in names}, []
    known = {"user_id": "user", "item_id": "item"}
    plain = {name: known.get(match[1], match[1]) for name, match in matches.items() if match}
    return plain, [name for name, match in matches.items() if match and match[2].endswith("_seq")]


def _kinds_to_read(
    names: list[str], plain: Mapping[str, str], column_kinds: Mapping[str, str] | None
) -> dict[str, str]:
    if column_kinds is None:
        return dict.fromkeys((name for name in names if name or names.count("") == 1), "text")
    kinds = {name: column_kinds.get(name) or column_kinds.get(plain[name]) for name in names}
    return {name: kind for name, kind in kinds.items() if kind} or dict.fromkeys(names[:1], "text")


def _check_quotes(file: BinaryIO, separator: str) -> tuple[bool, bool]:
    """Whether every quote opens or closes a field or is doubled within one, so that all CSV readers agree on the
    fields; and whether there is no blank and no ``0x``, so that they agree on the numbers too."""
    may_adjoin_quote = np.zeros(256, dtype=bool)
    may_adjoin_quote[[ord(separator), ord("\n"), ord("\r"), ord('"')]] = True
    inside = 0  # 1 between an opening and a closing quote
    closes_at_end = False  # whether the last byte of the previous chunk closed a field
    has_plain_numbers = True
    last = b"\n"
    while chunk := file.read(_QUOTES_CHUNK):
        window = np.frombuffer(last + chunk, dtype=np.uint8)
        quotes = np.flatnonzero(window[1:] == ord('"')) + 1
        opens, closes = quotes[inside::2], quotes[1 - inside :: 2]
        after = closes[closes + 1 < len(window)] + 1
        if not (may_adjoin_quote[window[opens - 1]].all() and may_adjoin_quote[window[after]].all()) or (
            closes_at_end and not may_adjoin_quote[window[1]]
        ):
            return False, False
        has_plain_numbers = has_plain_numbers and not any(mark in last + chunk for mark in (b" ", b"0x", b"0X"))
        inside ^= len(quotes) % 2
        closes_at_end = len(after) < len(closes)
        last = chunk[-1:]
    return not inside, has_plain_numbers


class _WholeLineEnds(io.RawIOBase):
    """A file whose reads never end between a carriage return and the next byte. Arrow's reader treats a line feed at
    the beginning of a block as the second half of a CRLF, even inside quotes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        kept = data.rstrip(b"\r")
        if len(kept) < len(data) and kept and self._file.read(1):
            self._file.seek(len(kept) - len(data) - 1, io.SEEK_CUR)
            return kept
        return data


@contextmanager
def _released_by_reader(file: _WholeLineEnds) -> Iterator[list[_WholeLineEnds]]:
    """Pass a file to Arrow's reader and wait until its threads have released it.

    They do so shortly after the reader has returned; a release during interpreter shutdown would abort the process. The
    file is passed in a list, which the caller empties, so that no reference of ours keeps it alive.
    """
    released = threading.Event()
    weakref.finalize(file, released.set)
    holder = [file]
    del file
    try:
        yield holder
    finally:
        holder.clear()
        released.wait(1.0)


def _read_with_arrow(file: BinaryIO, start: int, separator: str, chosen: Mapping[str, str]) -> dict[str, Any] | None:
    """The columns, read by Arrow; None if a row does not parse."""
    types = {"text": pa.string(), "encoded": pa.dictionary(pa.int32(), pa.string()), "integer": pa.int64()}
    for integers in (True, False):
        kinds = {name: kind if integers or kind != "integer" else "text" for name, kind in chosen.items()}
        file.seek(start)
        try:
            with _released_by_reader(_WholeLineEnds(file)) as holder:
                table = pa.csv.read_csv(
                    pa.PythonFile(holder.pop(), mode="r"),
                    read_options=pa.csv.ReadOptions(block_size=1 << 21),
                    parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
                    convert_options=pa.csv.ConvertOptions(
                        column_types={name: types[kind] for name, kind in kinds.items()},
                        include_columns=list(kinds), null_values=[""], strings_can_be_null=True,
                        quoted_strings_can_be_null=True, auto_dict_encode=False,
                    ),
                )  # fmt: skip
        except (pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowNotImplementedError):
            if "integer" in kinds.values():
                continue
            return None
        pa.default_memory_pool().release_unused()
        return dict(zip(table.column_names, table.columns, strict=True))
    return None


def _read_with_csv(data: bytes, path: Path, separator: str, names: list[str]) -> dict[str, list[str]]:
    """The columns, read by Python's strict ``csv``, which knows the row of an error. A single unnamed column is kept;
    several are dropped, since spreadsheets write empty ones."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise not_utf8(data, path) from None
    rows: list[list[str]] = []
    _FIELD_LIMIT.acquire()  # the field size limit is global to the process
    previous_limit = csv.field_size_limit(2**31 - 1)
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True):
            if row:
                if rows and len(row) != len(names):
                    raise DataError(
                        f"{path}, row {len(rows)}: expected {len(names)} fields, as in the header; got {len(row)}: "
                        f"{separator.join(row):.80}"
                    )
                rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}, row {max(len(rows), 1)}: expected quotes that open and close: {error}") from error
    finally:
        csv.field_size_limit(previous_limit)
        _FIELD_LIMIT.release()
    has_several_unnamed = names.count("") > 1
    return {
        name: [row[index] for row in rows[1:]] for index, name in enumerate(names) if name or not has_several_unnamed
    }
