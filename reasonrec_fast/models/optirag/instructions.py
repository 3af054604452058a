"""Requests from instruction records: text alone, without retriever and dense features."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from reasonrec_fast.data.instructions import Instruction
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.dataset import Requests
from reasonrec_fast.models.optirag.evidence import DENSE_FEATURES
from reasonrec_fast.models.optirag.prompt import Slate

_logger = logging.getLogger("reasonrec_fast")


def instruction_requests(records: Sequence[Instruction], tokenizer: Any, config: OptiRAGConfig) -> Requests:
    """One request a record, each with a prompt of its own.

    Args:
        records: questions with their answers.
        tokenizer: of the backbone.
        config: its two token budgets together bound a prompt. A longer one keeps its instruction, and of its input the
            beginning and the end; how many were cut is logged.

    Raises:
        ValueError: an instruction that leaves no room for its input (the record is named from 1).
    """
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    budget = config.prefix_tokens + (config.suffix_tokens or 24) - len(start)
    slates, cut = [], 0
    for index, record in enumerate(records):
        ids = _ids(tokenizer, f"{record.instruction}\n{record.input}\nAnswer:")
        if len(ids) > budget:
            ids, cut = _shortened(tokenizer, record, budget, index), cut + 1
        slates.append(Slate(np.array([index]), [], [[*start, *ids]]))
    if cut:
        _logger.warning(
            "%d of %d records are longer than %d tokens (prefix_tokens + suffix_tokens): their middle is cut",
            cut, len(records), budget + len(start),
        )  # fmt: skip
    return Requests(
        rows=np.arange(len(records)),
        labels=np.array([record.label for record in records], dtype=np.int64),
        dense_features=np.zeros((len(records), len(DENSE_FEATURES)), dtype=np.float32),
        offset=None,
        features=None,
        cold=np.zeros(len(records), dtype=bool),
        prompts=lambda indices: [slates[index] for index in indices],
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _shortened(tokenizer: Any, record: Instruction, budget: int, index: int) -> list[int]:
    head, tail = _ids(tokenizer, f"{record.instruction}\n"), _ids(tokenizer, "\nAnswer:")
    middle, room = _ids(tokenizer, record.input), budget - len(head) - len(tail)
    if room < 2:
        raise ValueError(
            f"records: expected instructions of fewer than {budget - len(tail) - 1} tokens (prefix_tokens + "
            f"suffix_tokens bound a prompt); got {len(head)} in record {index + 1}"
        )
    return [*head, *middle[: room - room // 2], *middle[len(middle) - room // 2 :], *tail]
