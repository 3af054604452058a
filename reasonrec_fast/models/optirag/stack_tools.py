"""The tools of a :class:`~reasonrec_fast.models.optirag.CTRStack`: models and functions that give requests a logit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch

from reasonrec_fast.arrays import as_array, as_numbers
from reasonrec_fast.data import UNLABELLED, DataError, Histories, Interactions
from reasonrec_fast.data.timeline import Timeline
from reasonrec_fast.models.classical.base import ClassicalRecommender
from reasonrec_fast.models.classical.stack_tools import ModelTool, ToolSpec, fit_tool
from reasonrec_fast.training.progress import Progress

RequestFunction: TypeAlias = Callable[[Interactions, Histories], Any]
"""From ``N`` requests, without labels and in time order, and the items that the user of each liked strictly before it,
oldest first, to finite logits ``[N]`` (larger: likelier)."""

BlockTime = Literal["user", "all"]


def specs_of(entries: Sequence[Any]) -> list[ToolSpec]:
    """The models of a configuration.

    Raises:
        ValueError: a model that cannot be a tool, settings that it does not have, or a name twice.
    """
    specs = []
    for entry in entries:
        for key in ("refit", "last_item"):
            if not isinstance(entry, str) and key in entry:
                raise ValueError(f"tools: {entry.get('kind')}: expected no {key} in a CTRStack; got {entry[key]!r}")
        specs.append(ToolSpec.parse(entry))
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"tools: expected different names; got {name!r} twice")
    return specs


def time_blocks(table: Interactions, count: int, by: BlockTime) -> np.ndarray:
    """Divide events into blocks of about as many, in time order; events of one moment are in one block.

    Args:
        table: the events.
        count: of blocks.
        by: ``"user"``: each user's events by themselves; ``"all"``: all events together.

    Returns:
        int64 ``[N]``, from 0.

    >>> data = Interactions.from_columns(["a", "b", "a", "b"], ["x", "y", "y", "x"], [1, 0, 1, 0], [1, 2, 2, 3])
    >>> time_blocks(data, 2, "user").tolist(), time_blocks(data, 2, "all").tolist()
    ([0, 0, 1, 1], [0, 0, 0, 1])
    """
    if by == "all":
        before = np.searchsorted(table.timestamps, table.timestamps)
        total = np.full(len(table), max(len(table), 1))
    else:
        line = Timeline.of_users(table)
        before = line.positions_before(table.users, table.timestamps) - line.indptr[table.users]
        total = np.diff(line.indptr)[table.users]
    return before * count // total


class Learnt(NamedTuple):
    """Of whom and what a model had events to learn from.

    Attributes:
        users, items: bool ``[U]`` and ``[I]``.
    """

    users: np.ndarray
    items: np.ndarray

    @classmethod
    def by(cls, tool: ModelTool) -> Learnt:
        """Of a fitted model, by the events that it was fitted on."""
        seen, items = tool.model.seen, np.zeros(tool.model.sizes["items"], dtype=bool)
        items[seen.items] = True
        return cls(seen.lengths > 0, items)

    def pairs(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Which pairs ``[N]`` have both: whether the fitted table names an item of which nothing was learnt, or lacks
        it, makes no difference."""
        inside = (users < len(self.users)) & (items < len(self.items))
        inside[inside] = self.users[users[inside]] & self.items[items[inside]]
        return inside


def prequential_logits(
    spec: ToolSpec,
    table: Interactions,
    blocks: np.ndarray,
    *,
    seed: int,
    device: torch.device,
    folder: Path | None,
    progress: Progress | None,
) -> np.ndarray:
    """Logits of training requests, each from a model that was fitted on the blocks before its own alone.

    Args:
        spec: of the tool.
        table: the requests; those without a label are scored and not learnt.
        blocks: of each, from :func:`time_blocks`, int64 ``[N]``.
        seed, device, progress: as of :func:`~reasonrec_fast.models.classical.stack_tools.fit_tool`.
        folder: where fitted models are kept for a fit that is killed; a dot, which no tool's name has, parts the name
            from the block.

    Returns:
        float32 ``[N]``; NaN in the first block, and where there is no like before.

    Raises:
        DataError: logits that are not finite.
    """
    logits = np.full(len(table), np.nan, dtype=np.float32)
    for block in range(1, int(blocks.max(initial=0)) + 1):
        past, now = np.flatnonzero((blocks < block) & (table.labels != UNLABELLED)), np.flatnonzero(blocks == block)
        if not len(now) or not (table.labels[past] == 1).any():
            continue
        tool = fit_tool(
            spec, table, past, None, seed=seed, device=device,
            folder=None if folder is None else folder / f"{spec.name}.{block}", progress=progress,
        )  # fmt: skip
        logits[now] = model_logits(tool, Learnt.by(tool), table.users[now], table.items[now])
    return logits


def model_logits(tool: ModelTool, learnt: Learnt, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Logits of pairs, float32 ``[N]``; NaN where nothing was learnt of the user or of the item.

    Raises:
        DataError: logits that are not finite.
    """
    model: ClassicalRecommender = tool.model
    logits = np.full(len(users), np.nan, dtype=np.float32)
    known = np.flatnonzero(learnt.pairs(users, items))
    if len(known):
        logits[known] = checked_logits(tool.name, model.score(users[known], items[known]), len(known))
    return logits


def function_logits(name: str, function: RequestFunction, table: Interactions, rows: np.ndarray) -> np.ndarray:
    """Logits of requests by a user's function, float32 ``[N]``.

    Args:
        name: for errors.
        function: is given no label of any request.
        table: the requests, and what their users did.
        rows: of the requests.

    Raises:
        DataError: the function fails, or gives anything but a finite number for each request.
    """
    distinct, position = np.unique(rows, return_inverse=True)
    requests = table.take(distinct)
    line = Timeline.of_users(table, np.flatnonzero(table.labels == 1))
    ends = line.positions_before(requests.users, requests.timestamps)
    liked = Histories(line.indptr, table.items[line.rows]).spans(line.indptr[requests.users], ends)
    try:
        result = function(replace(requests, labels=np.full(len(requests), UNLABELLED)), liked)
    except Exception as error:
        raise DataError(f"tools: {name}: expected logits of requests; got {type(error).__name__}: {error}") from error
    return checked_logits(name, result, len(requests))[position]


def training_function_logits(name: str, function: RequestFunction, table: Interactions) -> np.ndarray:
    """Logits of all rows of a table to learn from, float32 ``[N]``: :func:`function_logits`, which may not depend on
    the other rows, as the function could read from them what is later.

    Raises:
        DataError: as of :func:`function_logits`, or another logit of the first, the middle or the last row when it is
            alone.
    """
    logits = function_logits(name, function, table, np.arange(len(table)))
    for row in sorted({0, len(table) // 2, len(table) - 1}):
        alone = function_logits(name, function, table, np.array([row]))[0]
        if not np.isclose(alone, logits[row], rtol=1e-3, atol=1e-4):
            raise DataError(
                f"tools: {name}: expected a logit that depends on its own request alone; row {row} has {logits[row]} "
                f"among {len(table)} requests, and {alone} by itself"
            )
    return logits


def checked_logits(name: str, values: Any, size: int) -> np.ndarray:
    """A tool's logits, float32 ``[N]``.

    Raises:
        DataError: another shape or type, or a value that is not finite (with its row).

    >>> checked_logits("mine", [0.5, float("nan")], 2)
    Traceback (most recent call last):
    reasonrec_fast.data.errors.DataError: tools: mine: expected finite logits; got nan in row 1
    """
    try:
        numbers = as_numbers(as_array(values, "logits"), "logits", nan=True, infinite=True)
    except (TypeError, ValueError, RuntimeError) as error:  # torch's own where a tensor is sparse or has no data
        raise DataError(f"tools: {name}: expected numbers [{size}]; got {type(values).__name__} ({error})") from error
    with np.errstate(over="ignore"):
        logits = numbers.astype(np.float32)
    if logits.shape != (size,):
        raise DataError(f"tools: {name}: expected logits [{size}]; got {list(logits.shape)}")
    wrong = np.flatnonzero(~np.isfinite(logits))
    if len(wrong):
        raise DataError(f"tools: {name}: expected finite logits; got {logits[wrong[0]]} in row {wrong[0]}")
    return logits
