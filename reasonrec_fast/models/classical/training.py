"""Training of classical models by gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from reasonrec_fast.models.classical.base import ClassicalRecommender
from reasonrec_fast.precision import fast_dtype
from reasonrec_fast.settings import Count, NotNegative, ShareBelowOne, Whole, check_settings
from reasonrec_fast.training.epochs import EpochTraining, train_epochs
from reasonrec_fast.training.progress import Progress


@dataclass(frozen=True)
class GradientConfig:
    """Hyper-parameters of every model that is trained in epochs.

    Attributes:
        batch: examples a step.
        epochs, patience: epochs at most, and epochs without a better validation value before stopping.
        learning_rate, weight_decay, warmup: of AdamW; warm-up in steps.
        average: decay of the moving average of the weights, which is validated and kept; 0 for none.
        precision: of products while training, ``"float32"``, ``"bfloat16"`` or ``"auto"``: the fastest of
            the device.
        seed: of initial weights, order and negatives.
    """

    batch: Count = 1024
    epochs: Whole = 100
    patience: Count = 10
    learning_rate: NotNegative = 1e-3
    weight_decay: NotNegative = 0.0
    warmup: Whole = 0
    average: ShareBelowOne = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)


def product_dtype(model: ClassicalRecommender) -> torch.dtype:
    """The dtype of products: ``precision`` of a model's configuration, on its device."""
    precision = model.config.precision
    return fast_dtype(model.device) if precision == "auto" else getattr(torch, precision)


def train_by_gradient(
    model: ClassicalRecommender,
    batches: Callable[[int], Iterator[Any]],
    loss: Callable[[Any], torch.Tensor],
    *,
    validate: Callable[[], float] | None,
    checkpoint: str | Path | None,
    progress: Progress | None,
) -> None:
    """Train a model whose configuration is a :class:`GradientConfig`; see :func:`train_epochs`.

    Args:
        model: has its parameters.
        batches: of an epoch.
        loss: of a batch, under autocast.
        validate, checkpoint, progress: as in :func:`train_epochs`.
    """
    config: GradientConfig = model.config
    dtype = product_dtype(model)

    def autocast_loss(batch: Any) -> torch.Tensor:
        with torch.autocast(model.device.type, dtype, enabled=dtype == torch.bfloat16):
            return loss(batch)

    train_epochs(
        model,
        batches,
        autocast_loss,
        EpochTraining(
            epochs=config.epochs,
            patience=config.patience,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup=config.warmup,
            average=config.average,
            seed=config.seed,
        ),
        validate=validate,
        checkpoint=checkpoint,
        fingerprint={
            "model": type(model).__name__,
            "config": asdict(model.config),
            "sizes": model.sizes,
            "events": model.training_digest,
        },
        progress=progress,
    )
