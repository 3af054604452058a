"""Reads tables from files: CSV, JSON lines, Parquet, compressed or not. Text stays text, malformed rows are errors."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import threading
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from reasonrec_fast.data.columns import Source
from reasonrec_fast.data.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t"}
"""Field separator by file suffix; a ``.csv`` may also use ``;`` or a tab, which its header shows. ``.inter`` and
``.item`` are RecBole's atomic files."""
KINDS = (".csv", ".tsv", ".jsonl", ".parquet", ".inter", ".item")

_CHUNK, _QUOTES_CHUNK = 1 << 24, 1 << 20
_FIELD_LIMIT = threading.Lock()
_BOM = b"\xef\xbb\xbf"
_RECBOLE_NAME = re.compile(r"(.+):(token|token_seq|float|float_seq)")


@dataclass(frozen=True)
class Table:
    """Columns of a source.

    Attributes:
        columns: name to values, all of one length, in the order of the source.
        source: of the columns, for errors.
        sequences: the text columns with several values, separated by spaces (RecBole's ``token_seq``).
        plain: for RecBole's columns, name to the name without its type.
    """

    columns: Mapping[str, Any]
    source: Source
    sequences: frozenset[str] = frozenset()
    plain: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def renamed(self, names: Mapping[str, str]) -> Table:
        """The table with columns renamed by ``names`` (our name to the table's name), if it has them; RecBole's columns
        lose their types.

        Raises:
            DataError: two columns would get the same name.
        """
        if self.plain:
            without_types = {self.plain.get(name, name): values for name, values in self.columns.items()}
            sequences = frozenset(self.plain.get(name, name) for name in self.sequences)
            names = {
                standard_name: self.plain.get(table_name, table_name) for standard_name, table_name in names.items()
            }
            return Table(without_types, self.source, sequences).renamed(names)
        source = replace(self.source, names=self.source.names or tuple(self.columns))
        name_of = {
            table_name: standard_name for standard_name, table_name in names.items() if table_name in self.columns
        }
        columns: dict[str, Any] = {}
        for table_name, values in self.columns.items():
            standard_name = name_of.get(table_name, table_name)
            if standard_name in columns or (table_name not in name_of and standard_name in name_of.values()):
                if table_name not in name_of:
                    continue  # another column of the table has our name, but the user chose a different one for it
                raise DataError(
                    f"columns: expected one column for {standard_name!r}; got two in {self.source.path or 'the table'}"
                )
            columns[standard_name] = values
        return Table(columns, source, frozenset(name_of.get(name, name) for name in self.sequences))


def kind_of(path: Path) -> str:
    """The suffix that gives a file's format, without that of its compression.

    Raises:
        DataError: not one of :data:`KINDS`.

    >>> kind_of(Path("a/events.csv.gz"))
    '.csv'
    """
    suffixes = path.suffixes[:-1] if path.suffix == ".gz" else path.suffixes
    kind = suffixes[-1].lower() if suffixes else ""
    if kind not in KINDS or (kind == ".parquet" and path.suffix == ".gz"):
        raise DataError(f"path: expected a {', '.join(KINDS[:-1])} or {KINDS[-1]} file (or .gz of text); got {path}")
    return kind


def read_table(source: str | Path | pd.DataFrame | pa.Table, *, column_kinds: Mapping[str, str] | None = None) -> Table:
    """Read a file, or take the columns of a table.

    Args:
        source: a path, a DataFrame (its index is ignored) or an Arrow table.
        column_kinds: for a delimited text file, the columns to read, each with ``"text"``, ``"encoded"``
            (dictionary-encoded text) or ``"integer"`` (text if some row is not an integer); all by default.

    Raises:
        DataError: no such file, an unsupported format, or invalid contents (with the row).
    """
    if isinstance(source, pd.DataFrame):
        names = [str(name) for name in source.columns]
        _check_distinct(names, Source())
        return Table({name: source.iloc[:, index] for index, name in enumerate(names)}, Source())
    if isinstance(source, pa.Table):
        _check_distinct(source.column_names, Source())
        return Table(dict(zip(source.column_names, source.columns, strict=True)), Source())
    if not isinstance(source, str | Path):
        raise DataError(f"path: expected a file, a DataFrame or an Arrow table; got {type(source).__name__}")
    path = Path(source)
    kind = kind_of(path)
    if not path.is_file():
        raise DataError(f"path: there is no file {path}")
    file_source = Source(str(path))
    if kind == ".parquet":
        try:
            return read_table_of(pa.parquet.read_table(path, partitioning=None), file_source)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: cannot be read as parquet: {error}") from error
    if kind == ".jsonl":
        return Table(_as_columns([record for _, record in records(contents(path), path)], file_source), file_source)
    return _read_delimited(path, SEPARATORS[kind], column_kinds)


def read_table_of(table: pa.Table, source: Source) -> Table:
    """The columns of an Arrow table."""
    _check_distinct(table.column_names, source)
    return Table(dict(zip(table.column_names, table.columns, strict=True)), source)


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
    start = len(_BOM) if data.startswith(_BOM) else 0
    for number, line in enumerate(data[start:].split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError:
            raise _not_utf8(data, path) from None
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
    value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()  # raises for half of a surrogate pair, which UTF-8 cannot encode
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"expected each key once; got {[name for name, _ in pairs]}")
    return record


def _refuse_constant(word: str) -> float:
    raise ValueError(f"expected a number; got {word}")


def _as_columns(rows: list[dict[str, Any]], source: Source) -> dict[str, list[Any]]:
    if not rows:
        raise DataError(f"{source.path}: expected rows; got none")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _read_delimited(path: Path, separator: str, column_kinds: Mapping[str, str] | None) -> Table:
    source = Source(str(path))
    file: BinaryIO = io.BytesIO(contents(path)) if path.suffix == ".gz" else path.open("rb")
    with file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        start = file.tell()
        names, separator = _header(file.read(_CHUNK), path, separator)
        _check_distinct(names, source)
        source = replace(source, names=tuple(names))
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
    _check_distinct([plain[name] for name in columns], source)
    return Table(columns, source, frozenset(sequences), plain if any(map(_RECBOLE_NAME.fullmatch, names)) else {})


def _header(start: bytes, path: Path, separator: str) -> tuple[list[str], str]:
    """The names of the columns, and the separator."""
    if not start:
        raise DataError(f"{path}: expected a header and rows; got an empty file")
    try:
        header_text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4 or len(start) < _CHUNK:
            raise _not_utf8(start, path) from None
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
    inside, closes_at_end, has_plain_numbers = (
        0,
        False,
        True,
    )  # inside quotes; the last byte of the previous chunk closed a field
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
        raise _not_utf8(data, path) from None
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


def _check_distinct(names: Sequence[str], source: Source) -> None:
    duplicates = sorted({name for name in names if name and list(names).count(name) > 1})
    if duplicates:
        raise DataError(f"{source.path or 'table'}: expected columns of different names; got {duplicates[0]!r} twice")


def _not_utf8(data: bytes, path: str | Path) -> DataError:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return DataError(
            f"{path}, line {line}: expected UTF-8; got the byte 0x{data[error.start]:02x} at {error.start}: save the "
            "file as UTF-8"
        )
    raise AssertionError("UTF-8 after all")
