"""A judge of image quality without a language model: a regression on the features of frozen image encoders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.linear_model import RidgeCV

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.images import ImageSource
from reasonrec_fast.data.opinions import Opinions
from reasonrec_fast.data.percentiles import ONE_SCALE, Distribution, Percentiles
from reasonrec_fast.files import read_tensors, write_tensors
from reasonrec_fast.lm.efficientnet import WEIGHTS
from reasonrec_fast.lm.image_encoder import ImageEncoder, encoder_identity, first_difference
from reasonrec_fast.lm.natural_scene import NaturalSceneEncoder
from reasonrec_fast.lm.vision import CachedEncoder, load_image_encoder
from reasonrec_fast.models.classical.kernel_ridge import Kernel, KernelRidge
from reasonrec_fast.pretrained import PushToHub, load_folder, save_folder
from reasonrec_fast.settings import check_settings, settings_from
from reasonrec_fast.training.progress import Progress

_FORMAT = 1
_WEIGHTS = "model.safetensors"
_BLOCK = 64  # images between two reports of progress
_PENALTIES = tuple(np.logspace(0, 6, 13))


@dataclass(frozen=True)
class FeatureJudgeConfig:
    """Settings.

    Attributes:
        encoder: of images, as :func:`~reasonrec_fast.lm.vision.load_image_encoder` names it.
        sizes: an EfficientNet-Lite reads an image at the area of a square of each size; of no meaning for others.
        natural_scenes: whether natural-scene statistics (:mod:`~reasonrec_fast.lm.natural_scene`) are features too.
        kernel: ``"linear"`` is ridge regression; ``"rbf"`` keeps the training images' features, and compares with all.
        targets: what is regressed: ``"scores"``, or their ``"percentiles"``
            (:mod:`~reasonrec_fast.data.percentiles`), which are read back as scores.
    """

    encoder: str = "efficientnet-lite0"
    sizes: tuple[int, ...] = (512, 256)
    natural_scenes: bool = False
    kernel: Kernel = "linear"
    targets: Literal["scores", "percentiles"] = "scores"

    def __post_init__(self) -> None:
        check_settings(self)


class FeatureJudge(PushToHub):
    """Regression of mean opinion scores on standardised image features: ridge, whose penalty is the best of thirteen by
    leave-one-out on the training images (generalised cross-validation), or kernel ridge
    (:class:`~reasonrec_fast.models.classical.kernel_ridge.KernelRidge`).

    Args:
        config: settings.
        device: of the encoder; by default the GPU where there is one.
        cache: folder that keeps features from call to call; None for none.

    Raises:
        FileNotFoundError: the encoder's packages are not installed.
        ValueError: an unknown encoder, invalid sizes, or a device that this machine does not have.
    """

    config_type: ClassVar[type] = FeatureJudgeConfig

    def __init__(
        self,
        config: FeatureJudgeConfig | None = None,
        *,
        device: torch.device | str | None = None,
        cache: str | Path | None = None,
    ) -> None:
        self.config = config or FeatureJudgeConfig()
        sizes = self.config.sizes if self.config.encoder in WEIGHTS else None
        encoders: list[ImageEncoder] = [load_image_encoder(self.config.encoder, sizes=sizes, device=device)]
        if self.config.natural_scenes:
            encoders.append(NaturalSceneEncoder())
        if cache is not None:
            folders = (Path(cache), Path(cache) / "natural-scenes")
            encoders = [CachedEncoder(encoder, folder) for encoder, folder in zip(encoders, folders, strict=False)]
        self.encoder, self._encoders = encoders[0], encoders
        self.weights: dict[str, np.ndarray] = {}

    def fit(
        self,
        train: Opinions,
        validation: Opinions | None = None,
        *,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> FeatureJudge:
        """Learn from images.

        Args:
            train: images and scores, at least ten.
            validation, checkpoint: unused: the fit is in closed form.
            progress: called with the number of images read.

        Raises:
            DataError: too few images, scores that are all the same or of several scales, or an image that cannot be
                read.
        """
        train.check_one_scale("train")
        if len(train) < 10 or not np.ptp(train.scores):
            raise DataError(f"train: expected ten images of different scores at least; got {len(train)}")
        features = self._features(train.images, train.folder, progress)
        mean, scale = features.mean(0), features.std(0)
        scale[scale < 1e-9] = 1.0
        targets, standardised = train.scores, (features - mean) / scale
        weights = {"mean": mean, "scale": scale}
        if self.config.targets == "percentiles":
            percentiles = Percentiles.fit(replace(train, scales=None))
            targets = percentiles.of(train.scores)
            known = percentiles.distributions[ONE_SCALE]
            weights |= {"values": known.values, "percentiles": known.percentiles, "count": np.array([known.count])}
        if self.config.kernel == "linear":
            ridge = RidgeCV(_PENALTIES).fit(standardised, targets)
            weights |= {"coefficients": ridge.coef_, "intercept": np.array([ridge.intercept_])}
            weights |= {"penalty": np.array([ridge.alpha_])}
        else:
            model = KernelRidge.fit(standardised, targets, self.config.kernel)
            weights |= {"features": model.features, "weights": model.weights}
            weights |= {name: np.array([getattr(model, name)]) for name in ("offset", "width", "penalty")}
        self.weights = weights  # whole, or as they were
        return self

    def score(self, images: Sequence[ImageSource], *, folder: str | os.PathLike[str] | None = None) -> np.ndarray:
        """Scores in the units of the training scores, float64 ``[N]``.

        Args:
            images: what :func:`~reasonrec_fast.data.images.read_image` takes.
            folder: that relative paths are in, and that they may not leave.

        Raises:
            DataError: a judge that is not fitted or loaded, or an image that cannot be read (with its row).
        """
        self._check_fitted()
        weights = self.weights
        features = (self._features(images, folder, None) - weights["mean"]) / weights["scale"]
        if self.config.kernel == "linear":
            # Sums of a row alone: a product of matrices may depend on how many rows there are.
            predicted = (features * weights["coefficients"]).sum(1) + weights["intercept"][0]
        else:
            numbers = (float(weights[name][0]) for name in ("offset", "width", "penalty"))
            predicted = KernelRidge(weights["features"], weights["weights"], *numbers).predict(features)
        if self.config.targets == "scores":
            return predicted
        known = Distribution(weights["values"], weights["percentiles"], int(weights["count"][0]))
        return Percentiles({ONE_SCALE: known}).back(_inside(predicted))

    def _features(
        self, images: Sequence[ImageSource], folder: str | os.PathLike[str] | None, progress: Progress | None
    ) -> np.ndarray:
        blocks = []
        for start in range(0, len(images), _BLOCK):
            part = images[start : start + _BLOCK]
            try:
                read = [encoder.encode(part, folder=folder).flatten(1).double() for encoder in self._encoders]
                blocks.append(torch.cat(read, 1).numpy())
            except DataError as error:
                raise DataError(f"images {start} to {start + len(part) - 1}: {error}") from error
            if progress is not None:
                progress(start + len(part), len(images), {})
        width = sum(encoder.tokens * encoder.width for encoder in self._encoders)
        return np.concatenate(blocks) if blocks else np.zeros((0, width))

    def _identity(self) -> dict[str, Any]:
        """Of the encoders, in whose features the weights are."""
        return {
            name: encoder_identity(encoder)
            for name, encoder in zip(("encoder", "natural_scenes"), self._encoders, strict=False)
        }

    def _check_fitted(self) -> None:
        if not self.weights:
            raise DataError("model: expected one that is fitted or loaded; got a new one")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights (safetensors) and settings (JSON); a model that is there already is replaced as a whole.

        Raises:
            DataError: a judge that is not fitted; nothing is written.
        """
        self._check_fitted()

        def write(temporary: Path) -> Mapping[str, Any]:
            write_tensors(temporary / _WEIGHTS, {name: torch.from_numpy(value) for name, value in self.weights.items()})
            return {"config": asdict(self.config), **self._identity()}

        save_folder(folder, type(self).__name__, _FORMAT, (_WEIGHTS,), write)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> FeatureJudge:
        """Read what :meth:`save_pretrained` wrote.

        Args:
            folder: the model, or a repository of the Hugging Face hub.
            device: of the encoder.
            revision, token: of the repository.

        Raises:
            FileNotFoundError: nothing was saved there, or the encoder's packages are not installed.
            ValueError: the folder holds something else, or features of another encoder than is installed.
        """

        def read(folder: Path, stored: dict[str, Any]) -> FeatureJudge:
            model = cls(settings_from(FeatureJudgeConfig, stored["config"], str(folder)), device=device)
            identity = model._identity()
            difference = first_difference({name: stored[name] for name in identity}, identity)
            if difference is not None:
                name, expected, got = difference
                raise ValueError(
                    f"{folder}: expected the encoder's {name.partition('.')[2]} to be {expected}; got {got}"
                )
            model.weights = {name: value.numpy() for name, value in read_tensors(folder / _WEIGHTS).items()}
            return model

        return load_folder(folder, cls.__name__, _FORMAT, read, revision=revision, token=token)


def _inside(percentiles: np.ndarray) -> np.ndarray:
    """Percentiles in (0, 1): what a regression says near the ends of the scale and beyond them comes nearer and nearer
    to these, in its order."""
    near = 0.01
    low = near * np.exp(np.minimum(percentiles - near, 0) / near)
    high = 1 - near * np.exp(np.minimum(1 - near - percentiles, 0) / near)
    inside = np.where(percentiles < near, low, np.where(percentiles > 1 - near, high, percentiles))
    return np.clip(inside, np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg)
