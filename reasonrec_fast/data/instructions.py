"""Instruction files: records of ``instruction``, ``input`` and ``output``, as TALLRec publishes them."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import UNLABELLED
from reasonrec_fast.data.text_files import contents, parsed, records, text_lines

_ANSWERS = {"yes": 1, "no": 0}


@dataclass(frozen=True)
class Instruction:
    """One question with its answer.

    Attributes:
        instruction, input: the two parts of the prompt.
        label: 1 for "Yes", 0 for "No", :data:`UNLABELLED` if it is to be predicted.
    """

    instruction: str
    input: str
    label: int


def load_instructions(path: str | Path, *, allow_unlabelled: bool = False) -> list[Instruction]:
    """Read a ``.json`` list or a ``.jsonl`` file of records.

    Args:
        path: the file; it may be compressed (``.gz``).
        allow_unlabelled: accept records whose ``output`` is empty, null or missing, as ones to be answered.

    Raises:
        DataError: not such a file, a key is missing, or an output is not Yes or No; the message names the record,
            counted from 1.
    """
    raw_records = read_records(path)
    return [_instruction(record, path, number, allow_unlabelled) for number, record in enumerate(raw_records, start=1)]


def read_records(path: str | Path) -> list[Any]:
    """The records of a ``.json`` list or of a ``.jsonl`` file, without checks of their contents.

    Raises:
        DataError: not such a file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"path: there is no file {path}")
    if _kind(path) == ".jsonl":
        return [record for _, record in records(contents(path), path)]
    try:
        stored = parsed("\n".join(line for _, line in text_lines(contents(path), path)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON: {error}") from error
    if not isinstance(stored, list):
        raise DataError(f"{path}: expected a list of records; got {type(stored).__name__}")
    return stored


def is_instruction_file(path: str | Path) -> bool:
    """Whether a file has instructions rather than interactions: a ``.json`` file, or a ``.jsonl`` file whose first
    record has the key ``instruction``."""
    path = Path(path)
    if _kind(path) == ".jsonl" and path.is_file():
        try:
            with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
                first = next(filter(bytes.strip, lines), b"")
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: cannot be read as {_kind(path)}: {error}") from error
        try:
            return "instruction" in dict(json.loads(first.decode("utf-8-sig")))
        except (ValueError, TypeError, RecursionError):
            return b'"instruction"' in first  # invalid JSON: the reader will report the error
    return _kind(path) == ".json"


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _instruction(record: object, path: str | Path, number: int, allow_unlabelled: bool) -> Instruction:
    needed = {"instruction", "input"} if allow_unlabelled else {"instruction", "input", "output"}
    if not isinstance(record, dict) or not needed <= set(record):
        named = " and ".join(sorted(needed)) if allow_unlabelled else "instruction, input and output"
        raise DataError(f"{path}, record {number}: expected the keys {named}; got {record!r:.80}")
    for name in ("instruction", "input"):
        if not isinstance(record[name], str):
            raise DataError(f"{path}, record {number}: {name}: expected text; got {record[name]!r:.80}")
    output = record.get("output")
    if allow_unlabelled and (output is None or output == ""):
        return Instruction(record["instruction"], record["input"], UNLABELLED)
    answer = str(output).strip().strip(".").lower()
    if answer not in _ANSWERS:
        raise DataError(f"{path}, record {number}: output: expected Yes or No; got {output!r}")
    return Instruction(record["instruction"], record["input"], _ANSWERS[answer])
