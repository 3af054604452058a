"""Requests from instruction records: the text is all that there is, no retriever and no numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reasonrec_fast.data.instructions import Instruction
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.dataset import Requests
from reasonrec_fast.models.optirag.evidence import NUMBERS
from reasonrec_fast.models.optirag.prompt import Slate


def instruction_requests(records: Sequence[Instruction], tokenizer: Any, config: OptiRAGConfig) -> Requests:
    """One request a record, each with a prompt of its own.

    Args:
        records: questions with their answers.
        tokenizer: of the backbone.
        config: its two token budgets together bound a prompt; the beginning of a longer one is dropped.
    """
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    budget = config.prefix_tokens + config.suffix_tokens - len(start)
    slates = []
    for place, record in enumerate(records):
        ids = tokenizer(f"{record.instruction}\n{record.input}\nAnswer:", add_special_tokens=False)["input_ids"]
        slates.append(Slate(np.array([place]), [], [[*start, *ids[-budget:]]]))
    return Requests(
        rows=np.arange(len(records)),
        labels=np.array([record.label for record in records], dtype=np.int64),
        numbers=np.zeros((len(records), len(NUMBERS)), dtype=np.float32),
        cold=np.zeros(len(records), dtype=bool),
        slates=slates,
    )
