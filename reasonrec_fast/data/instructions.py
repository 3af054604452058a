"""Instruction files: records of ``instruction``, ``input`` and ``output``, as TALLRec publishes them."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.reading import contents, records, text_lines

_ANSWERS = {"yes": 1, "no": 0}


@dataclass(frozen=True)
class Instruction:
    """One question with its answer.

    Attributes:
        instruction, input: the two parts of the prompt.
        label: 1 for "Yes", 0 for "No".
    """

    instruction: str
    input: str
    label: int


def load_instructions(path: str | Path) -> list[Instruction]:
    """Read a ``.json`` list or a ``.jsonl`` file of records.

    Raises:
        DataError: not such a file, a key is missing, or an output is not Yes or No; the record is named from 1.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"path: there is no file {path}")
    if _kind(path) == ".jsonl":
        found: object = [record for _, record in records(contents(path), path)]
    else:
        try:
            found = json.loads("\n".join(line for _, line in text_lines(contents(path), path)))
        except ValueError as error:
            raise DataError(f"{path}: expected JSON: {error}") from error
    if not isinstance(found, list):
        raise DataError(f"{path}: expected a list of records; got {type(found).__name__}")
    return [_instruction(record, path, number) for number, record in enumerate(found, start=1)]


def is_instruction_file(path: str | Path) -> bool:
    """Whether a path names instructions rather than interactions: a ``.json`` file, or a ``.jsonl`` file whose first
    record has the key ``instruction``."""
    path = Path(path)
    if _kind(path) == ".jsonl" and path.is_file():
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            return b'"instruction"' in next(filter(bytes.strip, lines), b"")
    return _kind(path) == ".json"


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _instruction(record: object, path: Path, number: int) -> Instruction:
    if not isinstance(record, dict) or not {"instruction", "input", "output"} <= set(record):
        raise DataError(f"{path}, record {number}: expected the keys instruction, input and output; got {record!r:.80}")
    answer = str(record["output"]).strip().strip(".").lower()
    if answer not in _ANSWERS:
        raise DataError(f"{path}, record {number}: output: expected Yes or No; got {record['output']!r}")
    return Instruction(str(record["instruction"]), str(record["input"]), _ANSWERS[answer])
