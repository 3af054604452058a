"""Tables of the commands: options, reading, and writing results in blocks."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import typer

from reasonrec_fast.data import (
    Interactions,
)
from reasonrec_fast.data.columns import as_column
from reasonrec_fast.data.datasets import load_events
from reasonrec_fast.data.reading import Table
from reasonrec_fast.data.split import SplitKind
from reasonrec_fast.files import atomic_write, check_writable

DataOption = Annotated[
    str,
    typer.Option(
        help="movielens-small, the folder of MovieLens 100K, a folder with sequences.txt, a .csv, .tsv, .parquet or "
        ".jsonl (or .gz) of interactions, or a .json or .jsonl of instructions"
    ),
]
ItemsOption = Annotated[Path | None, typer.Option(help="table of the items (id, title, attributes)")]
LikeOption = Annotated[float | None, typer.Option(help="a rating of at least this is a like; 4 by default")]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        help="names of your columns, such as user=customer_id,item=sku,timestamp=time,rating=stars,title=name"
    ),
]
TimeUnitOption = Annotated[
    str | None,
    typer.Option(help="of numbers in timestamp: s, ms, us, ns or count; by default inferred from their size"),
]
TimeFormatOption = Annotated[
    str | None, typer.Option(help="of dates in timestamp that are not ISO 8601, such as '%d/%m/%Y %H:%M'")
]

BLOCK = 1 << 16
"""Rows written at a time."""
WRITTEN = (".csv", ".tsv", ".jsonl", ".parquet")

Values: TypeAlias = "np.ndarray | pa.Array"
"""Values of a column that is written, ``[R]``."""
Part: TypeAlias = tuple[np.ndarray, Mapping[str, Values]]
"""Rows of a table, and further columns by name."""


@dataclass(frozen=True)
class TableOptions:
    """Command line options of a table; see :func:`~reasonrec_fast.data.load_interactions`."""

    like: float | None = None
    columns: str | None = None
    time_unit: str | None = None
    time_format: str | None = None

    def values(self) -> dict[str, Any]:
        """As arguments of :func:`~reasonrec_fast.data.load_interactions`.

        Raises:
            ValueError: ``columns`` has an invalid pair, or a repeated name.

        >>> TableOptions(columns="user=customer").values()["columns"]
        {'user': 'customer'}
        """
        pairs = [pair.partition("=") for pair in self.columns.split(",")] if self.columns else []
        if any(not name.strip() or not column.strip() for name, _, column in pairs):
            raise ValueError(f"--columns: expected pairs such as user=customer_id,item=sku; got {self.columns!r}")
        names = {name.strip(): column.strip() for name, _, column in pairs}
        if len(names) < len(pairs):
            raise ValueError(f"--columns: expected each name once; got {self.columns!r}")
        return {
            "like": self.like,
            "columns": names,
            "time_unit": self.time_unit,
            "time_format": self.time_format,
        }


def load_data(data: str, items: Path | None, options: TableOptions | None = None) -> Interactions:
    """Interactions, from the name or path of the option ``--data``."""
    values = (options or TableOptions()).values()
    sequences = (Path(data) / "sequences.txt").is_file()
    named = sequences or is_movielens(data)
    if named and (items is not None or any(value not in (None, {}) for value in values.values())):
        raise ValueError(
            f"--items, --like, --columns, --time-unit, --time-format: expected a table of yours; got {data}"
        )
    if sequences:
        return load_events("sequences", data)
    if named:
        return load_events(data if data == "movielens-small" else "movielens-100k", data)
    return load_events("table", data, items, **values)


def is_movielens(data: str) -> bool:
    """Whether ``--data`` is MovieLens: a name or a folder, not a table."""
    return data == "movielens-small" or (Path(data).is_dir() and not (Path(data) / "sequences.txt").is_file())


def split_kind(name: str, *others: str) -> SplitKind:
    """A split by its name; the error message also lists ``others``.

    Raises:
        ValueError: an unknown split.

    >>> split_kind("user_time")
    'user_time'
    """
    known: list[str] = list(get_args(SplitKind))
    if name not in known:
        *most, last = [*known, *others]
        raise ValueError(f"split: expected {', '.join(most)} or {last}; got {name!r}")
    return name  # type: ignore[return-value]


def written_kind(output: str) -> str:
    """The suffix of a file that :func:`rows_to` can write; ``.csv`` for standard output.

    Raises:
        ValueError: another kind.

    >>> written_kind("a.jsonl.gz"), written_kind("-")
    ('.jsonl', '.csv')
    """
    if output == "-":
        return ".csv"
    path = Path(output)
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind not in WRITTEN or (kind == ".parquet" and path.suffix == ".gz"):
        raise ValueError(f"--output: expected a {', '.join(WRITTEN)} file (or .gz of text) or -; got {output}")
    return kind


def check_output(output: str, *inputs: str | Path | None) -> None:
    """Refuse, before any work, an output that cannot be written or would overwrite an input.

    Raises:
        ValueError: an unsupported kind of file, or one of ``inputs``.
        OSError: the file cannot be written.
    """
    written_kind(output)
    if output == "-":
        return
    check_writable(output)
    for given in inputs:
        if given is not None and Path(output).exists() and Path(given).exists() and Path(output).samefile(given):
            raise ValueError(f"--output: expected another file than those that are read; got {output}")


def check_rows(output: str, table: Table, more: Sequence[str]) -> None:
    """Refuse, before any work, a table that :func:`write_rows` would refuse.

    Raises:
        ValueError: as in :func:`write_rows`.
    """
    twins = set(table.columns) & set(more)
    if twins:
        where = table.source.path or "data"
        raise ValueError(f"{where}: expected no column called {sorted(twins)[0]!r}, which is written; rename it")
    if written_kind(output) == ".parquet":
        for name, values in table.columns.items():
            _kind(_kept(values, name), name)


def write_rows(output: str, table: Table, rows: np.ndarray, more: Mapping[str, Values]) -> None:
    """Write some rows of a table unchanged, with further columns, in blocks.

    Args:
        output: a file, which is replaced when it is complete; its suffix is its format. ``-`` for standard output.
        table: whose columns are kept.
        rows: of the table, int64 ``[R]``.
        more: name to values ``[R]``.

    Raises:
        ValueError: a column of the table has the name of a further column, or the format cannot hold a column.
    """
    write_parts(output, table, tuple(more), [(rows, more)])


def write_parts(output: str, table: Table, names: Sequence[str], parts: Iterable[Part]) -> None:
    """As :func:`write_rows`, for rows that are computed in parts, of which one is in memory at a time.

    Args:
        output, table: as in :func:`write_rows`.
        names: of the further columns, in order.
        parts: at least one, which may have no rows: rows of the table and the further columns' values, of the same
            types in every part.

    Raises:
        ValueError: as in :func:`write_rows`; for names before the first part is computed.
    """
    check_rows(output, table, names)
    kind = written_kind(output)
    columns = {name: _kept(values, name) for name, values in table.columns.items()}
    if kind != ".parquet":
        columns = {name: _decoded(values) for name, values in columns.items()}
    blocks = (block for rows, more in parts for block in _blocks(columns, rows, more))
    with ExitStack() as stack:
        if output == "-":
            if sys.stdout is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard output")
            _write_text(sys.stdout, kind, [*columns, *names], blocks)
            return
        temporary = stack.enter_context(atomic_write(output))
        if kind == ".parquet":
            _write_parquet(temporary, columns, blocks)
        else:
            file = stack.enter_context(_text_file(temporary, packed=output.endswith(".gz")))
            _write_text(file, kind, [*columns, *names], blocks)


def _kept(values: Any, name: str) -> Any:
    """A column; dictionary-encoded columns stay so."""
    if isinstance(values, pa.ChunkedArray) and pa.types.is_dictionary(values.type) and values.num_chunks:
        joined = values.unify_dictionaries().combine_chunks()
        if isinstance(joined, pa.Array):
            return joined
    return as_column(values, name)


def _decoded(column: Any) -> Any:
    """Columns of bytes as text, if all are UTF-8."""
    if isinstance(column, pa.Array):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            with suppress(pa.ArrowInvalid):
                return column.cast(pa.large_string())
    return column


@contextmanager
def _text_file(path: Path, *, packed: bool) -> Iterator[TextIO]:
    with path.open("wb") as raw, ExitStack() as stack:
        binary: Any = stack.enter_context(gzip.GzipFile(fileobj=raw, mode="wb", mtime=0)) if packed else raw
        text = stack.enter_context(io.TextIOWrapper(binary, encoding="utf-8", newline=""))
        yield text


def _blocks(
    columns: Mapping[str, Any], rows: np.ndarray, more: Mapping[str, Values]
) -> Iterator[dict[str, pa.Array | Sequence[Any]]]:
    for first in range(0, max(len(rows), 1), BLOCK):
        some = rows[first : first + BLOCK]
        block: dict[str, Any] = {
            name: [column[row] for row in some.tolist()] if isinstance(column, list) else column.take(pa.array(some))
            for name, column in columns.items()
        }
        yield block | {name: values[first : first + BLOCK] for name, values in more.items()}


class _LineFeeds:
    """Takes rows that end in ``\\r\\n`` and writes them with ``\\n``."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row[:-2] + "\n")


def _write_text(file: TextIO, kind: str, names: Sequence[str], blocks: Iterator[Mapping[str, Any]]) -> None:
    # Rows end in line feeds; with \r\n as its line end, the writer quotes values that contain either character.
    writer = csv.writer(_LineFeeds(file), delimiter="\t" if kind == ".tsv" else ",", lineterminator="\r\n")
    if kind != ".jsonl":
        writer.writerow(names)
    for block in blocks:
        columns = [_plain(block[name]) for name in names]
        if kind != ".jsonl":
            writer.writerows(zip(*([_word(value) for value in column] for column in columns), strict=True))
            continue
        for row in zip(*columns, strict=True):
            file.write(_json(dict(zip(names, row, strict=True))) + "\n")


def _json(record: dict[str, Any]) -> str:
    """A record as JSON; NaN and infinities are null."""
    try:
        return json.dumps(record, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(record), ensure_ascii=False, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _plain(column: Any) -> list[Any]:
    if isinstance(column, np.ndarray) and column.dtype == np.float32:
        return [float(str(value)) for value in column]  # the shortest number that is this float32
    return (
        column.tolist()
        if isinstance(column, np.ndarray)
        else column.to_pylist()
        if isinstance(column, pa.Array)
        else column
    )


def _word(value: Any) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else value


def _write_parquet(path: Path, columns: Mapping[str, Any], blocks: Iterator[Mapping[str, Any]]) -> None:
    writer: pyarrow.parquet.ParquetWriter | None = None
    try:
        kinds = {name: _kind(column, name) for name, column in columns.items()}
        for block in blocks:
            rows = pa.table(
                {n: pa.array(v, kinds.get(n)) if not isinstance(v, pa.Array) else v for n, v in block.items()}
            )
            writer = writer or pyarrow.parquet.ParquetWriter(path, rows.schema)
            writer.write_table(rows)
    finally:
        if writer is not None:
            writer.close()


def _kind(column: Any, name: str) -> pa.DataType:
    try:
        kind = pa.array(column).type if isinstance(column, list) else column.type
        if pa.types.is_struct(kind) and kind.num_fields == 0:
            raise pa.ArrowInvalid("objects without a key")
        return kind
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise ValueError(f"data: expected values of one type in {name!r}, to be written as parquet: {error}") from error
