"""DCN-v2 (Wang et al. 2021, arXiv 2008.13535): crosses of fields of bounded degree beside a deep network."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from reasonrec_fast.devices import fork_rng, seed_rng
from reasonrec_fast.models.classical.ctr import CTRConfig, CTRModel
from reasonrec_fast.models.classical.fields import FieldEmbeddings
from reasonrec_fast.settings import Count, NotNegative, ShareBelowOne, Whole


@dataclass(frozen=True)
class DCNv2Config(CTRConfig):
    """Hyper-parameters, beside those of :class:`~reasonrec_fast.models.classical.ctr.CTRConfig`.

    Attributes:
        cross_layers: the degree of the crosses, less one.
        deep: widths of the deep network's layers.
        structure: ``"parallel"``, both read the fields, or ``"stacked"``, the deep network reads the crosses.
        dropout: after each layer of the deep network.
    """

    cross_layers: Whole = 3
    deep: tuple[Count, ...] = (256, 128)
    structure: Literal["parallel", "stacked"] = "parallel"
    dropout: ShareBelowOne = 0.2
    weight_decay: NotNegative = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.deep, list):  # files give lists
            object.__setattr__(self, "deep", tuple(self.deep))
        super().__post_init__()


class DCNv2(CTRModel):
    """``x[l + 1] = x[0] * (W[l] x[l] + b[l]) + x[l]`` (equation 1), ``x[0]`` being all fields' vectors in a row.

    Args:
        config: hyper-parameters.
        device: of the model.

    >>> import numpy as np
    >>> from reasonrec_fast.data import Interactions
    >>> data = Interactions.from_columns(["a", "a", "b"], ["x", "y", "x"], [1, 0, 1], [1, 2, 3])
    >>> DCNv2(DCNv2Config(dim=4, epochs=2)).fit(data, np.arange(3)).score(np.array([1]), np.array([1])).shape
    (1,)
    """

    config_type = DCNv2Config
    config: DCNv2Config

    def build_parameters(self, sizes: dict[str, int]) -> None:
        config = self.config
        cpu = torch.device("cpu")
        with fork_rng(cpu):
            seed_rng(config.seed, cpu)
            self.fields = FieldEmbeddings(sizes, config.dim, history=config.history > 0)
            nn.init.normal_(self.fields.table, std=0.05)
            width = self.fields.fields * config.dim
            self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(config.cross_layers))
            widths = (width, *config.deep)
            layers: list[nn.Module] = []
            for before, after in pairwise(widths):
                layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(config.dropout)]
            self.deep = nn.Sequential(*layers)
            self.last = nn.Linear(widths[-1] + (width if config.structure == "parallel" else 0), 1)

    def logits(self, vectors: torch.Tensor) -> torch.Tensor:
        first = crossed = vectors.flatten(1)
        for layer in self.crosses:
            crossed = first * layer(crossed) + crossed
        if self.config.structure == "stacked":
            return self.last(self.deep(crossed)).squeeze(1)
        return self.last(torch.cat([crossed, self.deep(first)], dim=1)).squeeze(1)
