"""Instruction files: records of ``instruction``, ``input`` and ``output``, as TALLRec publishes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from reasonrec_fast.data.errors import DataError

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
    text = path.read_text(encoding="utf-8")
    records = []
    try:
        if path.suffix == ".jsonl":
            for line in filter(str.strip, text.splitlines()):
                records.append(json.loads(line))
        else:
            records = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: expected JSON (record {len(records) + 1}): {error}") from error
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a list of records; got {type(records).__name__}")
    return [_instruction(record, path, number) for number, record in enumerate(records, start=1)]


def is_instruction_file(path: str | Path) -> bool:
    """Whether a path names instructions rather than interactions: a ``.json`` file, or a ``.jsonl`` file whose first
    record has the key ``instruction``."""
    path = Path(path)
    if path.suffix == ".jsonl" and path.is_file():
        with path.open(encoding="utf-8") as lines:
            return '"instruction"' in next(filter(str.strip, lines), "")
    return path.suffix == ".json"


def _instruction(record: object, path: Path, number: int) -> Instruction:
    if not isinstance(record, dict) or not {"instruction", "input", "output"} <= set(record):
        raise DataError(f"{path}, record {number}: expected the keys instruction, input and output; got {record!r:.80}")
    answer = str(record["output"]).strip().strip(".").lower()
    if answer not in _ANSWERS:
        raise DataError(f"{path}, record {number}: output: expected Yes or No; got {record['output']!r}")
    return Instruction(str(record["instruction"]), str(record["input"]), _ANSWERS[answer])
