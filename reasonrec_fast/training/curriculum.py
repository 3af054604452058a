"""The evidence-horizon curriculum of ReasonRec (arXiv 2606.28357): which users' samples a training step draws."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from reasonrec_fast.arrays import as_count, as_numbers, same_length
from reasonrec_fast.settings import NotNegative, Share, check_settings

Horizon = Literal["quantile", "paper"]
Pacing = Literal["linear", "root", "competence"]


class EvidenceHorizon:
    """How little is known of a user, ``C(u)`` in [0, 1]; near 1 is cold.

    Args:
        counts: events of each user in the training part, ``[U]``.
        kind: ``"paper"`` is ``1 - |I_u| / max_v |I_v|``. One user with a very long history puts nearly all others
            beyond 0.7 there. ``"quantile"`` is the share of training users with more events (of those with as many,
            half).

    Raises:
        ValueError: no users, or counts that are not numbers of at least 0 (with the row).

    >>> EvidenceHorizon(np.array([1, 2, 2, 20])).of(np.array([0, 2, 50])).tolist()
    [1.0, 0.5, 0.0]
    """

    def __init__(self, counts: np.ndarray, kind: Horizon = "quantile") -> None:
        self.counts, self.kind = np.sort(_checked_counts(counts)), kind
        if not len(self.counts):
            raise ValueError("counts: expected at least one user; got none")
        if kind not in ("quantile", "paper"):
            raise ValueError(f"kind: expected 'quantile' or 'paper'; got {kind!r}")

    def of(self, counts: np.ndarray) -> np.ndarray:
        """Of users with so many events, float64 ``[B]``; they need not be of the training part."""
        counts = _checked_counts(counts)
        if self.kind == "paper":
            return np.maximum(1 - counts / max(self.counts[-1], 1), 0.0)
        fewer, at_most = (np.searchsorted(self.counts, counts, side) for side in ("left", "right"))
        return 1 - (fewer + at_most) / 2 / len(self.counts)


def evidence_horizons(counts: np.ndarray, kind: Horizon = "quantile") -> np.ndarray:
    """:class:`EvidenceHorizon` of the training users themselves, float64 ``[U]``.

    >>> evidence_horizons(np.array([1, 2, 2, 20])).tolist()
    [0.875, 0.5, 0.5, 0.125]
    >>> evidence_horizons(np.array([1, 2, 2, 20]), "paper").round(2).tolist()
    [0.95, 0.9, 0.9, 0.0]
    """
    return EvidenceHorizon(counts, kind).of(counts)


def _checked_counts(counts: np.ndarray) -> np.ndarray:
    counts = as_numbers(counts, "counts")
    if len(counts) and counts.min() < 0:
        raise ValueError(f"counts: expected at least 0; got {counts.min():g} in row {int(counts.argmin())}")
    return counts


class CurriculumTrace(NamedTuple):
    """What a curriculum does over a training, ``[P]`` each.

    Attributes:
        progress: of the training, 0 to 1.
        limit: the largest evidence horizon that is drawn.
        admitted: share of the samples that may be drawn.
        mean_horizon: expected evidence horizon of a drawn sample.
    """

    progress: np.ndarray
    limit: np.ndarray
    admitted: np.ndarray
    mean_horizon: np.ndarray

    def plot(self, path: str | Path) -> None:
        """Draw all three over the progress.

        Raises:
            ImportError: matplotlib is not installed (extra ``plot``).
        """
        from matplotlib.figure import Figure

        axes = Figure(figsize=(6, 3.5), layout="constrained").subplots()
        for name in ("limit", "admitted", "mean_horizon"):
            axes.plot(self.progress, getattr(self, name), label=name.replace("_", " "))
        axes.set(xlabel="share of the training done", ylabel="share, evidence horizon", ylim=(0, 1.02))
        axes.legend()
        axes.figure.savefig(path)  # type: ignore[union-attr]


@dataclass(frozen=True)
class Curriculum:
    """Warm users first, then colder ones, and at the end an emphasis on the coldest: the paper's three phases.

    A step draws samples with probabilities in proportion to :meth:`weights`, without replacement.

    Attributes:
        warm, cold: evidence horizons below which a user is warm and above which one is cold.
        warm_until, cold_from: progress of the training at which the first phase ends and the last one begins.
        pacing: of the middle phase, from ``warm`` to 1: ``"linear"``; ``"root"``, which opens as the square root of
            the time; or ``"competence"``, the square root of competence-based learning (Platanios et al. 2019,
            arXiv 1903.09848, equation 7).
        cold_weight: how many times likelier a cold user's sample is in the last phase.
        tail: exponent of the popularity of a sample's target by which its weight is divided; 0 for none.
        reverse: cold users first (to measure what the order is worth).
    """

    warm: Share = 0.3
    cold: Share = 0.7
    warm_until: Share = 0.1
    cold_from: Share = 0.95
    pacing: Pacing = "root"
    cold_weight: NotNegative = 3.0
    tail: NotNegative = 0.0
    reverse: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.warm <= self.cold:
            raise ValueError(f"cold: expected at least warm, {self.warm:g}; got {self.cold:g}")
        if not self.warm_until <= self.cold_from:
            raise ValueError(f"cold_from: expected at least warm_until, {self.warm_until:g}; got {self.cold_from:g}")

    def limit(self, progress: float) -> float:
        """The largest evidence horizon that is drawn at a progress in [0, 1].

        >>> [round(Curriculum().limit(progress), 2) for progress in (0.0, 0.1, 0.3, 0.95)]
        [0.3, 0.3, 0.64, 1.0]
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress: expected in [0, 1]; got {progress}")
        if progress >= self.cold_from:
            return 1.0
        if progress < self.warm_until:
            return self.warm
        time = (progress - self.warm_until) / (self.cold_from - self.warm_until)
        if self.pacing == "competence":
            return math.sqrt(time * (1 - self.warm**2) + self.warm**2)
        return self.warm + (1 - self.warm) * (time if self.pacing == "linear" else math.sqrt(time))

    def weights(self, horizons: np.ndarray, progress: float, target_counts: np.ndarray | None = None) -> np.ndarray:
        """Of samples, float64 ``[N]``; 0 for those that are not drawn yet.

        Args:
            horizons: evidence horizons of the samples' users, ``[N]``.
            progress: of the training, in [0, 1].
            target_counts: training events of the samples' targets, ``[N]``; needed where ``tail`` is not 0.

        Raises:
            ValueError: horizons outside [0, 1] (with the row), no counts or others, or no progress in [0, 1].

        >>> Curriculum().weights(np.array([0.2, 0.5, 0.9]), 1.0).tolist()
        [1.0, 1.0, 3.0]
        """
        horizons = as_numbers(horizons, "horizons")
        outside = np.flatnonzero((horizons < 0) | (horizons > 1))
        if len(outside):
            raise ValueError(f"horizons: expected in [0, 1]; got {horizons[outside[0]]:g} in row {outside[0]}")
        if self.reverse:
            horizons = 1 - horizons
        # Where nobody is as warm as the limit, the warmest begin.
        limit = max(self.limit(progress), horizons.min(initial=1.0))
        weights = (horizons <= limit).astype(np.float64)
        if progress >= self.cold_from:
            weights[horizons > self.cold] *= self.cold_weight
        if self.tail:
            if target_counts is None:
                raise ValueError("target_counts: expected, as tail is not 0; got None")
            counts = as_numbers(target_counts, "target_counts")
            same_length(horizons=horizons, target_counts=counts)
            weights /= np.maximum(counts, 1.0) ** self.tail
        return weights

    def draw(
        self,
        horizons: np.ndarray,
        size: int,
        *,
        step: int,
        steps: int,
        seed: int = 0,
        target_counts: np.ndarray | None = None,
    ) -> np.ndarray:
        """The samples of one step, int64 ``[size]``, or all that are admitted, if these are fewer; they depend on the
        step and the seed alone.

        Args:
            horizons, target_counts: as in :meth:`weights`.
            size: samples of a step.
            step: from 0.
            steps: of the training.
            seed: of the random numbers.
        """
        size, steps = as_count(size, "size", 1), as_count(steps, "steps", 1)
        weights = self.weights(horizons, min(step / steps, 1.0), target_counts)
        eligible = int((weights > 0).sum())
        if not eligible:
            raise ValueError("horizons: expected a sample that may be drawn; got none")
        generator = np.random.default_rng((seed, step))
        return generator.choice(len(weights), min(size, eligible), replace=False, p=weights / weights.sum())

    def trace(
        self, horizons: np.ndarray, target_counts: np.ndarray | None = None, points: int = 101
    ) -> CurriculumTrace:
        """What it does over a training on these samples."""
        progress = np.linspace(0, 1, as_count(points, "points", 2))
        weights = np.stack([self.weights(horizons, float(value), target_counts) for value in progress])
        mean = (weights * np.asarray(horizons, dtype=np.float64)).sum(1) / weights.sum(1)
        limits = np.array([self.limit(float(value)) for value in progress])
        return CurriculumTrace(progress, limits, (weights > 0).mean(1), mean)


class CurriculumSampler:
    """A curriculum over the samples of a training, such as
    :func:`~reasonrec_fast.training.sft.train_supervised` takes one.

    Args:
        curriculum: of the samples.
        horizons, target_counts: of each sample, ``[N]``, as in :meth:`Curriculum.weights`.

    Raises:
        ValueError: as :meth:`Curriculum.weights`.
    """

    def __init__(self, curriculum: Curriculum, horizons: np.ndarray, target_counts: np.ndarray | None = None) -> None:
        curriculum.weights(horizons, 0.0, target_counts)
        self.curriculum = curriculum
        self.horizons = as_numbers(horizons, "horizons")
        self.target_counts = None if target_counts is None else as_numbers(target_counts, "target_counts")

    def __len__(self) -> int:
        return len(self.horizons)

    @property
    def identity(self) -> dict[str, Any]:
        """Settings and a digest of what they are applied to, for the identity of a run."""
        digest = hashlib.blake2b(self.horizons.tobytes(), digest_size=16)
        if self.target_counts is not None:
            digest.update(self.target_counts.tobytes())
        return {**asdict(self.curriculum), "samples": digest.hexdigest()}

    def draw(self, size: int, *, step: int, steps: int, seed: int) -> np.ndarray:
        """The samples of one step (:meth:`Curriculum.draw`)."""
        return self.curriculum.draw(
            self.horizons, size, step=step, steps=steps, seed=seed, target_counts=self.target_counts
        )

    def metrics(self, step: int, steps: int) -> dict[str, float]:
        """What a log of the training says of a step."""
        progress = min(step / steps, 1.0)
        weights = self.curriculum.weights(self.horizons, progress, self.target_counts)
        return {
            "horizon_limit": self.curriculum.limit(progress),
            "horizon_mean": float(weights @ self.horizons / weights.sum()),
            "admitted": float((weights > 0).mean()),
        }
