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
from reasonrec_fast.prompts import Section, TokenIds, fit_budget

_logger = logging.getLogger("reasonrec_fast")


def instruction_requests(records: Sequence[Instruction], tokenizer: Any, config: OptiRAGConfig) -> Requests:
    """One request for each record, with a prompt of its own. Texts of records never become control tokens.

    Args:
        records: questions with their answers.
        tokenizer: of the backbone.
        config: its two token budgets together bound a prompt. Of a longer one the instruction is kept, and of the input
            the beginning and the end; how many were cut is logged.

    Raises:
        ValueError: an instruction that leaves no room for its input (the record is named, counted from 1).
    """
    ids = TokenIds(tokenizer)
    budget = config.prefix_tokens + (config.suffix_tokens or 24) - len(ids.start)
    slates, num_cut = [], 0
    for index, record in enumerate(records):
        prompt = list(ids.encode(f"{record.instruction}\n{record.input}\nAnswer:"))
        if len(prompt) > budget:
            prompt, num_cut = _shortened(ids, record, budget, index), num_cut + 1
        slates.append(Slate(np.array([index]), [], [[*ids.start, *prompt]]))
    if num_cut:
        _logger.warning(
            "%d of %d records are longer than %d tokens (prefix_tokens + suffix_tokens): their middle is cut",
            num_cut, len(records), budget + len(ids.start),
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


def _shortened(ids: TokenIds, record: Instruction, budget: int, index: int) -> list[int]:
    """The record without the middle of its input."""
    head, tail = ids.encode(f"{record.instruction}\n"), ids.encode("\nAnswer:")
    text, room = ids.encode(record.input), budget - len(head) - len(tail)
    if room < 2:
        raise ValueError(
            f"records: expected instructions of fewer than {budget - len(tail) - 1} tokens (prefix_tokens + "
            f"suffix_tokens bound a prompt); got {len(head)} in record {index + 1}"
        )
    begin = fit_budget([Section("input", [text], "cut_end")], room - room // 2).text
    end = fit_budget([Section("input", [text], "cut_start")], room // 2).text
    return [*head, *begin, *end, *tail]
