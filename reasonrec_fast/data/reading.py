"""Reads tables from files: CSV, JSON lines, Parquet, compressed or not. Text stays text, malformed rows are errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from reasonrec_fast.data.columns import Source, check_distinct_names
from reasonrec_fast.data.delimited import read_delimited
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.text_files import contents, records

SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t"}
"""Field separator by file suffix; a ``.csv`` may also use ``;`` or a tab, which its header shows. ``.inter`` and
``.item`` are RecBole's atomic files."""
KINDS = (".csv", ".tsv", ".jsonl", ".parquet", ".inter", ".item")


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
        check_distinct_names(names, Source())
        return Table({name: source.iloc[:, index] for index, name in enumerate(names)}, Source())
    if isinstance(source, pa.Table):
        check_distinct_names(source.column_names, Source())
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
    file = read_delimited(path, SEPARATORS[kind], column_kinds)
    has_types = any(file.plain[name] != name for name in file.names)
    return Table(
        file.columns,
        replace(file_source, names=file.names),
        frozenset(file.sequences),
        file.plain if has_types else {},
    )


def read_table_of(table: pa.Table, source: Source) -> Table:
    """The columns of an Arrow table."""
    check_distinct_names(table.column_names, source)
    return Table(dict(zip(table.column_names, table.columns, strict=True)), source)


def _as_columns(rows: list[dict[str, Any]], source: Source) -> dict[str, list[Any]]:
    if not rows:
        raise DataError(f"{source.path}: expected rows; got none")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}
