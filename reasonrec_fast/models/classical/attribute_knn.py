"""Items like those of the user by their attributes: content-based filtering with tf-idf."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array

from reasonrec_fast.data import Catalog, DataError, Interactions
from reasonrec_fast.models.classical.sparse_items import SparseRecommender, decayed_weights
from reasonrec_fast.settings import Share, check_settings


@dataclass(frozen=True)
class AttributeKNNConfig:
    """Hyper-parameters.

    Attributes:
        decay: weight of a history's item relative to that of the next later one.
    """

    decay: Share = 0.5

    def __post_init__(self) -> None:
        check_settings(self)


class AttributeKNN(SparseRecommender):
    """Scores an item by the cosines of its attributes with those of the user's items.

    An item is the vector of its attribute values, each weighted by its idf, ``log(I / items with it)``, and scaled to
    unit length. A user is the sum of their items' vectors, weighted by ``decay ** age``, where the latest item has
    the age 0. The score is the inner product, less its mean over the items with attributes: an item without attributes
    scores 0, neither above nor below them. No event is read but to know the histories, so that items without any are
    scored as the others.

    Args:
        config: hyper-parameters.
        device: of the model and its scores; the sparse products are on the CPU.

    >>> kinds = {"kind": {"x": ("lipstick",), "y": ("lipstick",), "z": ("soap",)}}
    >>> data = Interactions.from_columns(["a"], ["x"], [1], [1], attributes=kinds, extra_items=["y", "z"])
    >>> AttributeKNN().fit(data).recommend(["a"], 2).items.tolist()
    [['y', 'z']]
    """

    config_type = AttributeKNNConfig
    config: AttributeKNNConfig

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        if not any(values for column in data.catalog.attributes.values() for values in column):
            raise DataError(f"catalog: expected items with attributes; got none in {data.num_items} items")

    def fit_closed_form(self, data: Interactions, train: np.ndarray) -> None:
        self.keep(attribute_vectors(data.catalog), data.num_users)

    def scores(self, users: np.ndarray) -> torch.Tensor:
        histories, items = self.histories.select(self.user_indices(users)), self.matrix
        profiles = (decayed_weights(histories, items.shape[0], self.config.decay) @ items).toarray()
        described = np.diff(items.indptr) > 0
        scores = (items @ profiles.T).T
        mean = profiles @ items.sum(axis=0) / max(described.sum(), 1)
        scores = np.where(described, scores - mean[:, None], 0).astype(np.float32)
        return torch.from_numpy(scores).to(self.device)


def attribute_vectors(catalog: Catalog) -> csr_array:
    """Unit vectors of tf-idf of all items over all attribute values, ``[I, V]``; zero for items without any.

    >>> catalog = Catalog(["1", "2"], ["1", "2"], {"kind": [("film", "war"), ("film",)]})
    >>> attribute_vectors(catalog).toarray().tolist()  # what all items have tells nothing
    [[0.0, 1.0], [0.0, 0.0]]
    """
    values = [
        sorted({(name, value) for name, column in catalog.attributes.items() for value in column[item]})
        for item in range(len(catalog))
    ]
    # Sorted, so that sums over values do not depend on how items are numbered.
    number = {value: index for index, value in enumerate(sorted({value for row in values for value in row}))}
    indices = np.array([number[value] for row in values for value in row], dtype=np.int64)
    lengths = np.array([len(row) for row in values], dtype=np.int64)
    idf = np.log(len(catalog) / np.maximum(np.bincount(indices, minlength=len(number)), 1))
    rows = np.repeat(np.arange(len(catalog)), lengths)
    norms = np.sqrt(np.bincount(rows, idf[indices] ** 2, minlength=len(catalog)))
    weights = idf[indices] / np.where(norms > 0, norms, 1)[rows]
    vectors = csr_array(
        (weights, indices, np.concatenate([[0], np.cumsum(lengths)])), shape=(len(catalog), len(number))
    )
    vectors.eliminate_zeros()
    return vectors
