"""Schedules of the learning rate: functions of the step (from 0) whose value multiplies the peak rate."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
"""Maps the number of completed steps to a factor of the learning rates."""


def constant(step: int) -> float:
    """The peak rate at every step."""
    return 1.0


def warmup(steps: int) -> Schedule:
    """Linear growth over a number of steps, then the peak rate.

    >>> [warmup(3)(step) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return lambda step: min(1.0, (step + 1) / (steps + 1))


def warmup_cosine(steps: int, share: float = 0.06, least: float = 0.05) -> Schedule:
    """Linear growth over a share of the steps, then a cosine down to ``least``.

    >>> schedule = warmup_cosine(100)
    >>> [round(schedule(step), 2) for step in (0, 6, 53, 100)]
    [0.14, 1.0, 0.53, 0.05]
    """

    def factor(step: int) -> float:
        if step < share * steps:
            return (step + 1) / (share * steps + 1)
        fraction = (step - share * steps) / max((1 - share) * steps, 1)
        return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * fraction))

    return factor
