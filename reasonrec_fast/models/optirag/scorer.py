"""Scores requests by boosted trees, a language model with adapters and early exit; trains and calibrates these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from reasonrec_fast import evaluation
from reasonrec_fast.data.instructions import Instruction
from reasonrec_fast.devices import fork_rng, resolve_device, seed_rng
from reasonrec_fast.early_exit.depth_zero import DepthZero
from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.early_exit.ranker import EarlyExitRanker
from reasonrec_fast.lm.adapters import AdapterMerger, with_lora
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.loading import load_language_model
from reasonrec_fast.models.optirag import storage, training
from reasonrec_fast.models.optirag.calibration import Calibration, ExitScores, calibrate, check_promise
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.dataset import Requests
from reasonrec_fast.models.optirag.evidence import DENSE_FEATURES
from reasonrec_fast.models.optirag.instructions import instruction_requests
from reasonrec_fast.precision import fast_dtype
from reasonrec_fast.training.progress import NO_METRICS, Progress, named_part

BATCH_TOKENS = 4096
"""Most tokens of a batch, except where one prefix with one suffix is longer."""

Scorer = TypeVar("Scorer", bound="RequestScorer")


@dataclass(frozen=True)
class Predictions:
    """Scores of ``N`` requests.

    Attributes:
        probability: of a like, float32 ``[N]``.
        depth: layers read, int64 ``[N]``; 0 where the boosted trees answered.
    """

    probability: np.ndarray
    depth: np.ndarray

    @property
    def mean_depth(self) -> float:
        """Layers read per request; NaN without requests.

        >>> Predictions(np.zeros(2, np.float32), np.array([0, 6])).mean_depth
        3.0
        """
        return float(self.depth.mean()) if len(self.depth) else float("nan")


class RequestScorer:
    """The part of a model that knows no table of events: it scores requests, whoever made them.

    Args:
        config: settings.
        device: where the model lives; by default the GPU where there is one.

    Raises:
        ValueError: a device that is not available.
    """

    def __init__(self, config: OptiRAGConfig | None = None, *, device: torch.device | str | None = None) -> None:
        self.config = config or OptiRAGConfig()
        device = resolve_device(device)
        # Adapters and heads are drawn on the CPU, so that they are the same for every device; then everything moves.
        language_model, self.tokenizer = load_language_model(self.config.backbone, fast_dtype(device), device="cpu")
        backbone = Decoder(language_model)
        if self.config.layers is not None:
            backbone.keep_layers(self.config.layers)
        rank, alpha, cpu = self.config.lora_rank, self.config.lora_alpha, torch.device("cpu")
        self.peft: Any = with_lora(language_model, rank=rank, alpha=alpha, seed=self.config.seed)
        with fork_rng(cpu):
            seed_rng(self.config.seed, cpu)
            model = EarlyExitModel(
                backbone,
                self.config.exits,
                num_features=len(DENSE_FEATURES) if self.config.read_dense_features else 0,
                ensemble_size=self.config.ensemble_size,
                offset=self.config.stands_on_trees,
            )
        self.peft.to(device)
        self.ranker = EarlyExitRanker(model, self.tokenizer, max_tokens=BATCH_TOKENS, device=device)
        self.mean = np.zeros(len(DENSE_FEATURES), dtype=np.float32)
        self.scale = np.ones(len(DENSE_FEATURES), dtype=np.float32)
        self.depth_zero: DepthZero | None = None
        self.platt: dict[str, tuple[float, float]] = {}
        self.adapters = AdapterMerger(self.peft)

    @property
    def device(self) -> torch.device:
        return self.ranker.device

    @property
    def policy(self) -> ExitPolicy | None:
        """When requests exit: the policy of the ranker."""
        return self.ranker.policy

    def to(self: Scorer, device: torch.device | str) -> Scorer:
        """Move the model. The language model's weights take the dtype that the new device is fastest in; weights that
        were rounded to bfloat16 by a move stay rounded.

        Raises:
            ValueError: a device that is not available.
        """
        device = resolve_device(device)
        self.adapters.move(device, self.ranker.model.backbone.dtype, fast_dtype(device))
        self.ranker.to(device)
        return self

    # Training

    def fit_instructions(
        self: Scorer,
        records: Sequence[Instruction],
        validation: Sequence[Instruction],
        *,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Scorer:
        """Train the adapters and the heads on instruction records, and calibrate on others.

        Args:
            records, validation: questions answered with yes or no.
            checkpoint, progress: as in :meth:`~reasonrec_fast.models.optirag.OptiRAG.fit`; there is no retriever.

        Raises:
            ValueError: ``config.read_dense_features`` (records have none), one class alone, or too few validation
                records for ``config.max_disagreement``.
        """
        if self.config.read_dense_features:
            raise ValueError(
                "config: expected read_dense_features=False for instructions, which have no dense features; got True"
            )
        for name, part in (("records", records), ("validation", validation)):
            classes = sorted({record.label for record in part})
            if classes != [0, 1]:
                raise ValueError(f"{name}: expected both answers; got labels {classes}")
        users = np.arange(len(validation))  # each record counts as a user of its own
        check_promise(np.array([record.label for record in validation]), users, self.config)
        if progress is not None:
            progress(0, 1, NO_METRICS, "requests")
        requests = self.instruction_requests(records)
        self.train_requests(requests, {"records": _digest(records)}, checkpoint, named_part(progress, "training"))
        if progress is not None:
            progress(0, 1, NO_METRICS, "calibration")
        held_out = self.instruction_requests(validation), users
        self.calibrate(held_out, progress=named_part(progress, "calibration"))
        return self

    def train_requests(
        self,
        requests: Requests,
        fingerprint: dict[str, Any],
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Train the adapters and the heads, and take mean and scale of the dense features.

        Args:
            requests: training requests, labelled.
            fingerprint: what identifies the run in its checkpoint besides the configuration.
            checkpoint: file of the training state.
            progress: called after every step.
        """
        deviation = requests.dense_features.std(0)
        self.mean = requests.dense_features.mean(0)
        self.scale = np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)
        with self.adapters.unmerged():
            if self.config.read_dense_features and not self.config.stands_on_trees:
                training.warm_start(
                    self.ranker.model,
                    torch.from_numpy((requests.dense_features - self.mean) / self.scale),
                    torch.from_numpy(requests.labels),
                    self.config.warm_start_steps,
                    self.config.seed,
                )
            training.train(
                self.ranker.model, requests, self.mean, self.scale, self.config, checkpoint=checkpoint,
                progress=progress, fingerprint=fingerprint,
            )  # fmt: skip

    # Calibrating

    def calibrate(
        self,
        known: tuple[Requests, np.ndarray],
        unrated: tuple[Requests, np.ndarray] | None = None,
        *,
        progress: Progress | None = None,
    ) -> None:
        """Scale the heads, train depth 0 and choose the exit thresholds; see
        :func:`~reasonrec_fast.models.optirag.calibration.calibrate`.

        Args:
            known: validation requests, and the user of each ``[N]``.
            unrated: validation requests with their items shown as if nobody had rated them, and the users.
            progress: called with how many requests are scored.
        """
        done, total = 0, len(known[0].rows) + (0 if unrated is None else len(unrated[0].rows))

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total)

        known_scores = self.exit_scores(*known, progress=advance)
        unrated_scores = None if unrated is None else self.exit_scores(*unrated, progress=advance)
        self.use(calibrate(known_scores, unrated_scores, self.ranker.model.depths, self.config))

    def use(self, calibration: Calibration) -> None:
        """Take temperatures, scales, depth 0, thresholds and Platt scaling of a calibration."""
        self._set_heads(calibration.temperatures, calibration.scales)
        self.depth_zero, self.platt = calibration.depth_zero, calibration.platt
        self.ranker.policy = calibration.policy

    def exit_scores(
        self, requests: Requests, users: np.ndarray, progress: Callable[[int], None] | None = None
    ) -> ExitScores:
        """What calibration reads of requests and their users ``[N]``; sets temperatures and scales of the heads to
        1."""
        self._set_heads()
        return ExitScores(
            self.exit_logits(requests, progress), requests.labels, users, requests.cold, requests.offset,
            requests.features,
        )  # fmt: skip

    def _set_heads(self, temperatures: Sequence[float] = (), scales: Sequence[float] = ()) -> None:
        """Temperatures and scales of the heads; 1 where none are given."""
        for index, head in enumerate(self.ranker.model.heads):
            head.temperature.fill_(temperatures[index] if temperatures else 1.0)
            if head.offset:
                head.scale.fill_(scales[index] if scales else 1.0)

    def exit_logits(self, requests: Requests, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Logits of yes of every ensemble member at every head, float64 ``[E, N, K]``, at the present temperatures."""
        slates = requests.slates
        if not slates:
            return np.empty((len(self.ranker.model.exits), 0, self.config.ensemble_size))
        batch = requests.batch(slates, self.mean, self.scale)
        with self.adapters.merged():
            logits = self.ranker.exit_logits(batch.groups, batch.inputs, progress)
        ordered = np.empty_like(logits)
        ordered[:, np.concatenate([slate.rows for slate in slates])] = logits
        return ordered

    # Predicting

    def instruction_requests(self, records: Sequence[Instruction]) -> Requests:
        """Prompts of instruction records."""
        return instruction_requests(records, self.tokenizer, self.config)

    def predict(
        self,
        requests: Requests,
        *,
        early_exit: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> Predictions:
        """Probabilities of a like, in the order of ``requests.rows``. Any number of threads may call it: they share
        batches.

        Args:
            requests: from :meth:`~reasonrec_fast.models.optirag.OptiRAG.requests` or :meth:`instruction_requests`.
            early_exit: False reads every layer.
            progress: called with how many requests were just scored.
        """
        probability = np.empty(len(requests.rows), dtype=np.float32)
        depth = np.zeros(len(requests.rows), dtype=np.int64)
        exits = self._exits_at_zero(requests) if early_exit else np.zeros(len(requests.rows), dtype=bool)
        if exits.any():
            assert self.depth_zero is not None and requests.offset is not None and requests.features is not None
            logits = self.depth_zero.logits(requests.features[exits], requests.offset[exits])
            probability[exits] = 1 / (1 + np.exp(-logits))
        if progress is not None and exits.any():
            progress(int(exits.sum()))
        slates = requests.slates if not exits.any() else requests.prompts(np.flatnonzero(~exits))
        if slates:
            batch = requests.batch(slates, self.mean, self.scale)
            inputs = batch.inputs if self.config.read_dense_features else replace(batch.inputs, features=None)
            with self.adapters.merged():
                scores = self.ranker.predict_groups(batch.groups, inputs, early_exit=early_exit, progress=progress)
            rows = np.concatenate([slate.rows for slate in slates])
            probability[rows], depth[rows] = scores.probability.numpy(), scores.depth.numpy()
        return Predictions(probability, depth)

    def _exits_at_zero(self, requests: Requests) -> np.ndarray:
        """Which requests are answered from their features alone, bool ``[N]``: no prompt is written for them."""
        if self.policy is None or self.depth_zero is None or requests.features is None:
            return np.zeros(len(requests.rows), dtype=bool)
        return self.policy.leaves_at_zero(-self.depth_zero.gain(requests.features), requests.cold.astype(np.int64))

    def evaluate_instructions(self, records: Sequence[Instruction], *, early_exit: bool = True) -> dict[str, float]:
        """AUC and mean depth on instruction records."""
        requests = self.instruction_requests(records)
        predictions = self.predict(requests, early_exit=early_exit)
        return {
            "auc": evaluation.auc(requests.labels, predictions.probability),
            "mean_depth": predictions.mean_depth,
        }

    def load_adapters(self: Scorer, folder: str | Path) -> Scorer:
        """Take the adapters of a saved model, to train exits on top of it; heads and settings stay.

        Raises:
            FileNotFoundError: there are none in the folder.
            ValueError: they do not fit this backbone and rank.
        """
        adapter = storage.saved_adapter(Path(folder))
        with self.adapters.unmerged():
            storage.copy_weights(dict(self.peft.named_parameters()), adapter, "adapters")
        return self


def _digest(records: Sequence[Instruction]) -> str:
    """Equal only for equal records in the same order."""
    content = json.dumps([[record.instruction, record.input, record.label] for record in records])
    return hashlib.sha256(content.encode()).hexdigest()[:32]
