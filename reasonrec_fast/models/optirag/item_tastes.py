"""How a user liked items that are like the target, as of a moment: by who rated both, and by each attribute."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy.sparse import csr_array, csr_matrix

from reasonrec_fast.data.columns import NUMBER
from reasonrec_fast.data.interactions import Catalog
from reasonrec_fast.models.optirag.evidence import EvidenceBuilder
from reasonrec_fast.models.optirag.index import EventIndex, running, smoothed

_NEIGHBOURS = 200
_SHRINKAGE = 2.0  # added to the product of norms: similarity over few raters counts less
_PRIOR_SIMILARITY, _PRIOR_WEIGHT = 0.3, 3.0  # summed weights at which a taste counts by half
_BANDWIDTH = 0.3  # of a kernel over a numeric attribute, in standard deviations of the catalogue
_SHARPNESS = 8.0  # how fast an item's weight falls with the cosine of its attribute values to the target's
_HALF_LIVES = (5, 30)  # in events of the user
_POPULARITY_BANDWIDTH = 0.5  # of a kernel over the logarithm of an item's events
_LEAST_NUMBERS = 5  # distinct values of an attribute that is compared as a number
_LARGEST = float(np.finfo(np.float32).max)
_ITEMS, _REQUESTS = 1024, 256  # at a time


class ItemTastes:
    """Mean residuals of what a user did before a moment, each weighted by how much its item is like the target.

    A residual is the label minus what the user's like rate at that moment and the item's bias say. Similarities are: of
    two items, the shrunk cosine of their training residuals over users (item-kNN, Sarwar et al. 2001, for likes and
    dislikes), how late it was, Gaussian kernels of their popularity and of each numeric attribute, and the cosine of
    each other attribute's values.

    Args:
        index: of the training events, whose item biases are read.
        rows: rows of its events that similarities between items, and their popularity, come from.
    """

    def __init__(self, index: EventIndex, rows: np.ndarray) -> None:
        self.index, self._rows = index, rows
        catalog = index.events.catalog
        self.numeric = {
            name: _BANDWIDTH * float(values[~np.isnan(values)].std())
            for name, column in catalog.attributes.items()
            if (values := _numbers(column)) is not None
        }
        self.others = [name for name in catalog.attributes if name not in self.numeric]

    @property
    def names(self) -> list[str]:
        """Of the columns of :meth:`build`."""
        numeric = [f"{name}{suffix}" for name in self.numeric for suffix in ("", ":taste")]
        late = [f"last {half_life}:taste" for half_life in _HALF_LIVES]
        others = [f"{name}:taste" for name in self.others]
        return ["raters:taste", "raters:weight", *late, "popularity:taste", *numeric, *others]

    @cached_property
    def similarity(self) -> csr_array:
        """Of items by their raters, positive and off the diagonal alone, float32 ``[I, I]``."""
        events, rows = self.index.events, self._rows
        users, items, labels = events.users[rows], events.items[rows], events.labels[rows]
        size = events.num_users
        counts, likes = np.bincount(users, minlength=size), np.bincount(users, weights=labels, minlength=size)
        rate = smoothed(likes, counts, labels.mean() if len(labels) else 0.5)
        residuals = labels - expected(rate[users], self.index.bias(items))
        matrix = csr_matrix((residuals, (users, items)), shape=(size, events.num_items))
        columns = matrix.T.tocsr()
        norms = np.sqrt(np.asarray(columns.multiply(columns).sum(1)).ravel())
        indices, values, lengths = [], [], []
        for first in range(0, columns.shape[0], _ITEMS):
            products = (columns[first : first + _ITEMS] @ matrix).tocsr()
            for offset in range(products.shape[0]):
                item, part = first + offset, slice(products.indptr[offset], products.indptr[offset + 1])
                near, product = products.indices[part], products.data[part]
                keep = (product > 0) & (near != item)
                near, product = near[keep], product[keep]
                similarity = product / (norms[item] * norms[near] + _SHRINKAGE)
                if len(near) > _NEIGHBOURS:  # and those that tie with the last: item numbers decide nothing
                    last = np.partition(similarity, -_NEIGHBOURS)[-_NEIGHBOURS]
                    near, similarity = near[similarity >= last], similarity[similarity >= last]
                indices.append(near)
                values.append(similarity.astype(np.float32))
                lengths.append(len(near))
        parts = np.concatenate([*values, np.zeros(0, np.float32)]), np.concatenate([*indices, np.zeros(0, np.int32)])
        return csr_array((*parts, np.concatenate([[0], np.cumsum(lengths)])), shape=(events.num_items,) * 2)

    @cached_property
    def popularity(self) -> np.ndarray:
        """Logarithm of 1 and the events of each item, float64 ``[I + 1]``; the last is that of new items."""
        return np.log1p(np.bincount(self.index.events.items[self._rows], minlength=self.index.events.num_items + 1))

    def build(self, builder: EvidenceBuilder, rows: np.ndarray) -> np.ndarray:
        """Tastes of requests, float32 ``[N, len(names)]``; NaN for numbers that an item does not have.

        Args:
            builder: of the table of the requests; items that are new to the index come after its own.
            rows: of the requests.
        """
        table, result = builder.interactions, np.zeros((len(rows), len(self.names)), dtype=np.float32)
        order = np.argsort(table.users[rows], kind="stable")
        stops = np.flatnonzero(np.diff(table.users[rows][order])) + 1
        for of_user in np.split(order, stops):
            for first in range(0, len(of_user), _REQUESTS):
                part = of_user[first : first + _REQUESTS]
                result[part] = self._of_user(builder, rows[part])
        return result

    def _of_user(self, builder: EvidenceBuilder, rows: np.ndarray) -> np.ndarray:
        table = builder.interactions
        user, moments, targets = int(table.users[rows[0]]), table.timestamps[rows], table.items[rows]
        past = builder.histories.count_before(user, moments)
        history = builder.histories.all(user)[: past.max(initial=0)]
        items, labels = table.items[history], table.labels[history]
        rate = smoothed(running(labels)[past], past, self.index.base_rate(builder.in_index(moments)))
        residuals = labels - expected(rate[:, None], self.index.bias(items))
        before = np.arange(len(history)) < past[:, None]

        def taste(weights: np.ndarray) -> np.ndarray:
            weights = weights * before
            result: np.ndarray = (weights * residuals).sum(1) / (weights.sum(1) + _PRIOR_WEIGHT)
            return result

        weights = self._by_raters(targets, items) * before
        total = weights.sum(1)
        columns = [(weights * residuals).sum(1) / (total + _PRIOR_SIMILARITY), total]
        # Events of one moment have one age: their order is that of the source, which may be that of items.
        times = table.timestamps[history]
        age = np.maximum(past[:, None] - np.searchsorted(times, times, side="right"), 0)
        columns += [taste(np.exp2(-age / half_life)) for half_life in _HALF_LIVES]
        popularity = [self.popularity[np.minimum(part, len(self.popularity) - 1)] for part in (targets, items)]
        columns.append(taste(_kernel(popularity[0][:, None] - popularity[1], _POPULARITY_BANDWIDTH)))
        distinct, position = np.unique(np.concatenate([targets, items]), return_inverse=True)
        of_targets, of_history = np.split(position, [len(targets)])
        for name, bandwidth in self.numeric.items():
            numbers = np.array([_number(value) for value in _values(table.catalog, name, distinct)])
            kernel = _kernel(numbers[of_targets][:, None] - numbers[of_history], bandwidth)
            columns += [numbers[of_targets], taste(kernel)]
        for name in self.others:
            cosine = _cosines(_values(table.catalog, name, distinct), of_targets, of_history)
            columns.append(taste(np.exp(_SHARPNESS * (cosine - 1))))
        return np.stack(columns, axis=1).astype(np.float32)

    def _by_raters(self, targets: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Similarity of each target to each item of the history, ``[n, H]``; 0 for items that are new."""
        size, result = self.index.events.num_items, np.zeros((len(targets), len(items)), dtype=np.float32)
        known = np.flatnonzero(items < size)
        of_known = np.flatnonzero(targets < size)
        dense = self.similarity[targets[of_known]][:, items[known]].toarray()
        result[np.ix_(of_known, known)] = dense
        return result


def expected(rate: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Probability of a like where a user's like rate is ``rate`` and the item adds ``bias`` to its log-odds.

    >>> expected(np.array([0.5]), np.array([0.0])).tolist()
    [0.5]
    """
    rate = np.clip(rate, 1e-3, 1 - 1e-3)  # where all events are likes the rate is 1
    odds = np.log(rate) - np.log1p(-rate) + bias
    return 1 / (1 + np.exp(-odds))


def _kernel(distance: np.ndarray, bandwidth: float) -> np.ndarray:
    """A Gaussian kernel; 0 where the distance is NaN."""
    return np.nan_to_num(np.exp(-((distance / bandwidth) ** 2) / 2))


def _values(catalog: Catalog, name: str, items: np.ndarray) -> list[tuple[str, ...]]:
    column = catalog.attributes.get(name)
    return [() if column is None else column[item] for item in items.tolist()]


def _number(values: tuple[str, ...]) -> float:
    number = float(values[0]) if len(values) == 1 and NUMBER.fullmatch(values[0]) else np.nan
    return number if abs(number) <= _LARGEST else np.nan


def _numbers(column: object) -> np.ndarray | None:
    """A column as numbers, NaN where an item has none; None for a column that is not one of numbers, or of numbers
    that float32 does not hold or tell apart."""
    values = list(column)  # type: ignore[call-overload]
    numbers = np.array([_number(entry) for entry in values])
    whole = not any(entry and np.isnan(number) for entry, number in zip(values, numbers.tolist(), strict=True))
    finite = numbers[~np.isnan(numbers)].astype(np.float32)
    return numbers if whole and len(np.unique(finite)) > _LEAST_NUMBERS else None


def _cosines(values: list[tuple[str, ...]], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cosines of the sets of values of some items with those of others, ``[n, H]``."""
    index: dict[str, int] = {}
    entries = [sorted({index.setdefault(value, len(index)) for value in entry}) for entry in values]
    lengths = np.array([len(entry) for entry in entries])
    weights = np.repeat(1 / np.sqrt(np.maximum(lengths, 1)), lengths)
    flat = np.array([value for entry in entries for value in entry], dtype=np.int64)
    matrix = csr_array((weights, flat, np.concatenate([[0], np.cumsum(lengths)])), shape=(len(values), len(index)))
    result: np.ndarray = (matrix[rows] @ matrix[columns].T).toarray()
    return result
