"""Tables of files: CSV, JSON lines, Parquet, compressed or not. Text stays text; a row that does not fit is refused."""

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
"""What stands between fields by the file's name; the header of a ``.csv`` may also show ``;`` or a tab. ``.inter`` and
``.item`` are RecBole's atomic files."""
KINDS = (".csv", ".tsv", ".jsonl", ".parquet", ".inter", ".item")

_CHUNK, _QUOTES_CHUNK = 1 << 24, 1 << 20
_FIELD_LIMIT = threading.Lock()
_BOM = b"\xef\xbb\xbf"
_ATOMIC = re.compile(r"(.+):(token|token_seq|float|float_seq)")


@dataclass(frozen=True)
class Table:
    """Columns of a source.

    Attributes:
        columns: name to values, all of one length, in the order of the source.
        source: where they come from.
        sequences: the columns of text whose values stand between spaces (RecBole's ``token_seq``).
        plain: of RecBole's columns, name to what it is called without its type.
    """

    columns: Mapping[str, Any]
    source: Source
    sequences: frozenset[str] = frozenset()
    plain: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def renamed(self, names: Mapping[str, str]) -> Table:
        """With columns called what ``names`` (ours to the source's) says, where the source has them; RecBole's without
        their types.

        Raises:
            DataError: two columns would have one name.
        """
        if self.plain:
            without = {self.plain.get(name, name): values for name, values in self.columns.items()}
            sequences = frozenset(self.plain.get(name, name) for name in self.sequences)
            names = {ours: self.plain.get(theirs, theirs) for ours, theirs in names.items()}
            return Table(without, self.source, sequences).renamed(names)
        source = replace(self.source, names=self.source.names or tuple(self.columns))
        known = {theirs: ours for ours, theirs in names.items() if theirs in self.columns}
        columns: dict[str, Any] = {}
        for theirs, values in self.columns.items():
            ours = known.get(theirs, theirs)
            if ours in columns or (theirs not in known and ours in known.values()):
                if theirs not in known:
                    continue  # a column of that name which the user did not mean
                raise DataError(
                    f"columns: expected one column for {ours!r}; got two in {self.source.path or 'the table'}"
                )
            columns[ours] = values
        return Table(columns, source, frozenset(known.get(name, name) for name in self.sequences))


def kind_of(path: Path) -> str:
    """The suffix that tells what a file is, without that of its compression.

    Raises:
        DataError: another than :data:`KINDS`.

    >>> kind_of(Path("a/events.csv.gz"))
    '.csv'
    """
    suffixes = path.suffixes[:-1] if path.suffix == ".gz" else path.suffixes
    kind = suffixes[-1].lower() if suffixes else ""
    if kind not in KINDS or (kind == ".parquet" and path.suffix == ".gz"):
        raise DataError(f"path: expected a {', '.join(KINDS[:-1])} or {KINDS[-1]} file (or .gz of text); got {path}")
    return kind


def read_table(source: str | Path | pd.DataFrame | pa.Table, *, wanted: Mapping[str, str] | None = None) -> Table:
    """Read a file, or take the columns of a table.

    Args:
        source: a path, a DataFrame (its index is left out) or an Arrow table.
        wanted: of a text file with a separator, the only columns to read, each with ``"text"``, ``"encoded"`` (text, of
            which each different value is kept once) or ``"integer"`` (text where a row is none); all by default.

    Raises:
        DataError: no such file, another kind, or contents that cannot be read (with the row).
    """
    if isinstance(source, pd.DataFrame):
        names = [str(name) for name in source.columns]
        _distinct(names, Source())
        return Table({name: source.iloc[:, place] for place, name in enumerate(names)}, Source())
    if isinstance(source, pa.Table):
        _distinct(source.column_names, Source())
        return Table(dict(zip(source.column_names, source.columns, strict=True)), Source())
    if not isinstance(source, str | Path):
        raise DataError(f"path: expected a file, a DataFrame or an Arrow table; got {type(source).__name__}")
    path = Path(source)
    kind = kind_of(path)
    if not path.is_file():
        raise DataError(f"path: there is no file {path}")
    where = Source(str(path))
    if kind == ".parquet":
        try:
            return read_table_of(pa.parquet.read_table(path, partitioning=None), where)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: cannot be read as parquet: {error}") from error
    if kind == ".jsonl":
        return Table(_by_name([record for _, record in records(contents(path), path)], where), where)
    return _separated(path, SEPARATORS[kind], wanted)


def read_table_of(table: pa.Table, source: Source) -> Table:
    """The columns of an Arrow table."""
    _distinct(table.column_names, source)
    return Table(dict(zip(table.column_names, table.columns, strict=True)), source)


def contents(path: Path) -> bytes:
    """The bytes of a file, unpacked where its name ends in ``.gz``.

    Raises:
        DataError: what is packed is broken.
    """
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as gz: {error}") from error


def text_lines(data: bytes, path: str | Path) -> Iterator[tuple[int, str]]:
    """The lines of UTF-8 text that are not blank, with their numbers from 1, without a mark of the byte order; they end
    at line feeds alone (with or without a carriage return before).

    Raises:
        DataError: bytes that are no UTF-8 (the line and the byte are named).
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
    """The objects of JSON lines, with the numbers of their lines from 1.

    Raises:
        DataError: a line is no JSON object, has a key twice, or a number that JSON does not know.
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
    """What JSON says.

    Raises:
        ValueError, RecursionError: it is none, has a key twice, a number that JSON does not know, or half a letter.
    """
    found = json.loads(text, object_pairs_hook=_without_twins, parse_constant=_no_constant)
    if "\\ud" in text.lower():
        json.dumps(found, ensure_ascii=False).encode()  # half of a pair of surrogates is no text
    return found


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"expected each key once; got {[name for name, _ in pairs]}")
    return found


def _no_constant(word: str) -> float:
    raise ValueError(f"expected a number; got {word}")


def _by_name(rows: list[dict[str, Any]], source: Source) -> dict[str, list[Any]]:
    if not rows:
        raise DataError(f"{source.path}: expected rows; got none")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _separated(path: Path, separator: str, wanted: Mapping[str, str] | None) -> Table:
    source = Source(str(path))
    file: BinaryIO = io.BytesIO(contents(path)) if path.suffix == ".gz" else path.open("rb")
    with file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        start = file.tell()
        names, separator = _header(file.read(_CHUNK), path, separator)
        _distinct(names, source)
        source = replace(source, names=tuple(names))
        plain, sequences = _atomic(names)
        file.seek(start)
        columns: Mapping[str, Any] | None = None
        fits, numbers = _quotes_fit(file, separator)
        if fits:
            chosen = _chosen(names, plain, wanted)
            if not numbers:  # Arrow takes blanks around integers, and hexadecimal ones
                chosen = {name: "text" if kind == "integer" else kind for name, kind in chosen.items()}
            columns = _fast(file, start, separator, chosen)
        if columns is None:
            file.seek(start)
            columns = _slowly(file.read(), path, separator, names)
    if len(next(iter(columns.values()))) == 0:
        raise DataError(f"{path}: expected rows below the header; got none")
    _distinct([plain[name] for name in columns], source)
    return Table(columns, source, frozenset(sequences), plain if any(map(_ATOMIC.fullmatch, names)) else {})


def _header(start: bytes, path: Path, separator: str) -> tuple[list[str], str]:
    """The names of the columns, and what stands between them."""
    if not start:
        raise DataError(f"{path}: expected a header and rows; got an empty file")
    try:
        words = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4 or len(start) < _CHUNK:
            raise _not_utf8(start, path) from None
        words = start[: error.start].decode("utf-8")  # a letter goes on in what was not read
    for tried in dict.fromkeys([separator, *((";", "\t") if separator == "," else ())]):
        try:
            names = next(row for row in csv.reader(io.StringIO(words, newline=""), delimiter=tried, strict=True) if row)
        except (csv.Error, StopIteration) as error:
            raise DataError(f"{path}: expected a header; {error or 'got none'}") from error
        if len(names) > 1:
            return names, tried
    return names, separator


def _atomic(names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Names without the types of RecBole's atomic files (where all have them), and the columns of sequences."""
    found = {name: _ATOMIC.fullmatch(name) for name in names}
    if not all(found.values()):
        return {name: name for name in names}, []
    known = {"user_id": "user", "item_id": "item"}
    plain = {name: known.get(match[1], match[1]) for name, match in found.items() if match}
    return plain, [name for name, match in found.items() if match and match[2].endswith("_seq")]


def _chosen(names: list[str], plain: Mapping[str, str], wanted: Mapping[str, str] | None) -> dict[str, str]:
    if wanted is None:
        return dict.fromkeys((name for name in names if name or names.count("") == 1), "text")
    kinds = {name: wanted.get(name) or wanted.get(plain[name]) for name in names}
    return {name: kind for name, kind in kinds.items() if kind} or dict.fromkeys(names[:1], "text")


def _quotes_fit(file: BinaryIO, separator: str) -> tuple[bool, bool]:
    """Whether every quote opens or closes a field, or stands twice within one: then all readers read the same. And
    whether no blank and no ``0x`` stands anywhere: then they read the same numbers too."""
    beside = np.zeros(256, dtype=bool)
    beside[[ord(separator), ord("\n"), ord("\r"), ord('"')]] = True
    inside, pending, plain = 0, False, True  # between quotes; the last byte closes a field
    last = b"\n"
    while chunk := file.read(_QUOTES_CHUNK):
        window = np.frombuffer(last + chunk, dtype=np.uint8)
        quotes = np.flatnonzero(window[1:] == ord('"')) + 1
        opens, closes = quotes[inside::2], quotes[1 - inside :: 2]
        after = closes[closes + 1 < len(window)] + 1
        if not (beside[window[opens - 1]].all() and beside[window[after]].all()) or (pending and not beside[window[1]]):
            return False, False
        plain = plain and not any(mark in last + chunk for mark in (b" ", b"0x", b"0X"))
        inside ^= len(quotes) % 2
        pending = len(after) < len(closes)
        last = chunk[-1:]
    return not inside, plain


class _WholeLineEnds(io.RawIOBase):
    """A file whose reads never end between a carriage return and what follows it: Arrow's reader takes a line feed at
    the beginning of a block for the rest of a line's end, even between quotes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found = self._file.read(size)
        kept = found.rstrip(b"\r")
        if len(kept) < len(found) and kept and self._file.read(1):
            self._file.seek(len(kept) - len(found) - 1, io.SEEK_CUR)
            return kept
        return found


@contextmanager
def _let_go_of(file: _WholeLineEnds) -> Iterator[list[_WholeLineEnds]]:
    """Give a file, in a list, to Arrow's reader, and wait until its threads have let go of it, a moment after the
    reader's return: one that does so while Python ends would abort the process."""
    gone = threading.Event()
    weakref.finalize(file, gone.set)
    given = [file]
    del file
    try:
        yield given
    finally:
        given.clear()
        gone.wait(1.0)


def _fast(file: BinaryIO, start: int, separator: str, chosen: Mapping[str, str]) -> dict[str, Any] | None:
    """The columns by Arrow's reader; None where a row does not fit."""
    types = {"text": pa.string(), "encoded": pa.dictionary(pa.int32(), pa.string()), "integer": pa.int64()}
    for integers in (True, False):
        kinds = {name: kind if integers or kind != "integer" else "text" for name, kind in chosen.items()}
        file.seek(start)
        try:
            with _let_go_of(_WholeLineEnds(file)) as given:
                table = pa.csv.read_csv(
                    pa.PythonFile(given.pop(), mode="r"),
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


def _slowly(whole: bytes, path: Path, separator: str, names: list[str]) -> dict[str, list[str]]:
    """The columns by Python's strict reader, which knows the row of what is wrong; unless one alone has no name, those
    without are left out (spreadsheets write them for nothing)."""
    try:
        text = whole.decode("utf-8")
    except UnicodeDecodeError:
        raise _not_utf8(whole, path) from None
    rows: list[list[str]] = []
    _FIELD_LIMIT.acquire()  # the limit is one for all threads
    before = csv.field_size_limit(2**31 - 1)
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
        csv.field_size_limit(before)
        _FIELD_LIMIT.release()
    several = names.count("") > 1
    return {name: [row[place] for row in rows[1:]] for place, name in enumerate(names) if name or not several}


def _distinct(names: Sequence[str], source: Source) -> None:
    twins = sorted({name for name in names if name and list(names).count(name) > 1})
    if twins:
        raise DataError(f"{source.path or 'table'}: expected columns of different names; got {twins[0]!r} twice")


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
