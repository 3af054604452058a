"""Metrics of click-through predictions."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from reasonrec_fast.arrays import as_keys, as_labels, as_numbers, same_length
from reasonrec_fast.uncertainty import ece


class RankedLabels:
    """Labels sorted by score once, so that repeated weighted AUCs are cheap (a bootstrap computes thousands).

    Args:
        labels: 0 or 1, ``[N]``.
        scores: ``[N]``, larger is more likely positive; ties count half.
        checked: skip the validation of both.

    Raises:
        ValueError: not vectors of one length, a label that is neither 0 nor 1, or a score that is not finite (with its
            row).

    >>> RankedLabels(np.array([0, 1, 1]), np.array([0.1, 0.3, 0.2])).auc()
    1.0
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray, *, checked: bool = False) -> None:
        if not checked:
            labels, scores = as_labels(labels), as_numbers(scores, "scores")
            same_length(labels=labels, scores=scores)
        self.order = np.argsort(scores, kind="stable")
        self.positive = labels[self.order] == 1
        self._level = np.cumsum(np.diff(scores[self.order], prepend=scores[self.order][:1]) > 0)

    def auc(self, weights: np.ndarray | None = None) -> float:
        """Area under the ROC curve; NaN where one class is absent.

        Args:
            weights: of the events, ``[N]``, at least 0.
        """
        ordered = np.ones(len(self.order)) if weights is None else weights[self.order]
        positive = np.where(self.positive, ordered, 0.0)
        negative = ordered - positive
        if not len(ordered):
            return float("nan")
        positive_at = np.bincount(self._level, positive)
        negative_at = np.bincount(self._level, negative)
        below = np.cumsum(negative_at) - negative_at
        pairs = positive_at.sum() * negative_at.sum()
        return float((positive_at * (below + 0.5 * negative_at)).sum() / pairs) if pairs > 0 else float("nan")


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; NaN where one class is absent.

    Args:
        labels: 0 or 1, ``[N]``.
        scores: ``[N]``, larger is more likely positive; ties count half.

    Raises:
        ValueError: as :class:`RankedLabels`.

    >>> auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    1.0
    """
    return RankedLabels(labels, scores).auc()


def user_aucs(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC of every user who has both classes.

    Args:
        labels: 0 or 1, ``[N]``.
        scores: ``[N]``.
        users: of the events, ``[N]``; identifiers of any kind.

    Returns:
        the users with both classes ``[M]``, their AUCs ``[M]`` and their numbers of events ``[M]``.

    Raises:
        ValueError: as :class:`RankedLabels`, or a missing user (with the row).
    """
    labels, scores = as_labels(labels), as_numbers(scores, "scores")
    keys, user_index = as_keys(users, "users")
    same_length(labels=labels, scores=scores, users=user_index)
    kept_users, values, sizes = [], [], []
    order = np.argsort(user_index, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(user_index[order])) + 1):
        value = RankedLabels(labels[rows], scores[rows], checked=True).auc()
        if not np.isnan(value):
            kept_users.append(user_index[rows[0]])
            values.append(value)
            sizes.append(len(rows))
    return keys[np.array(kept_users, dtype=np.int64)], np.array(values), np.array(sizes, dtype=np.int64)


def gauc(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> float:
    """Mean AUC of the users with both classes, weighted by their events; NaN if there are none.

    Pooled AUC mostly measures how well the users' base rates are known; GAUC measures the ranking of one user's items.

    >>> gauc(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.9, 0.8]), np.array([0, 0, 1, 1]))
    0.5
    """
    _, values, sizes = user_aucs(labels, scores, users)
    return float(np.average(values, weights=sizes)) if len(values) else float("nan")


def fit_platt(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Platt scaling: slope and intercept that map a score to a logit.

    Args:
        labels: 0 or 1, ``[N]``, of validation events.
        scores: of the same events, ``[N]``.

    Raises:
        ValueError: as :class:`RankedLabels`, labels of one class, or scores whose squares are not finite.

    >>> slope, intercept = fit_platt(np.array([0, 1, 0, 1, 1, 0]), np.array([1.0, 3.0, 2.0, 4.0, 2.0, 3.0]))
    >>> slope > 0
    True
    """
    labels, scores = as_labels(labels), as_numbers(scores, "scores")
    same_length(labels=labels, scores=scores)
    if len(labels) == 0 or labels.min() == labels.max():
        raise ValueError(f"labels: expected both 0 and 1; got {labels[:1].tolist()} alone in {len(labels)} rows")
    with np.errstate(over="ignore"):
        scale, centre = float(np.std(scores)) or 1.0, float(np.mean(scores))
    if not np.isfinite(scale + centre):
        raise ValueError(f"scores: expected numbers whose squares are finite; got up to {np.abs(scores).max()}")
    model = LogisticRegression(C=1e6).fit(((scores - centre) / scale)[:, None], labels)
    slope = float(model.coef_[0, 0]) / scale
    return slope, float(model.intercept_[0]) - slope * centre


def platt_log_loss(labels: np.ndarray, scores: np.ndarray, platt: tuple[float, float]) -> float:
    """Log-loss of scores calibrated by :func:`fit_platt`.

    Args:
        labels: 0 or 1, ``[N]``, at least one.
        scores: ``[N]``.
        platt: slope and intercept.

    Raises:
        ValueError: as :class:`RankedLabels`, or no events.

    >>> round(platt_log_loss(np.array([1, 0]), np.array([1.0, -1.0]), (1.0, 0.0)), 3)
    0.313
    """
    labels, scores = as_labels(labels), as_numbers(scores, "scores")
    same_length(labels=labels, scores=scores)
    if not len(labels):
        raise ValueError("labels: expected at least one event; got none")
    logits = platt[0] * scores + platt[1]
    return float(np.logaddexp(0.0, np.where(labels == 1, -logits, logits)).mean())


def ctr_metrics(labels: np.ndarray, probabilities: np.ndarray, users: np.ndarray) -> dict[str, float]:
    """AUC, GAUC, log-loss, accuracy at threshold 0.5, and expected calibration error.

    Args:
        labels: 0 or 1, ``[N]``, at least one.
        probabilities: of 1, ``[N]``.
        users: of the events, ``[N]``; identifiers of any kind.

    Raises:
        ValueError: as :class:`RankedLabels`, a probability outside [0, 1] or a missing user (with its row), or no
            events.

    >>> metrics = ctr_metrics(np.array([0, 1, 0, 1]), np.array([0.2, 0.6, 0.6, 0.9]), np.array([0, 0, 1, 1]))
    >>> {name: round(value, 3) for name, value in metrics.items()}
    {'auc': 0.875, 'gauc': 1.0, 'log_loss': 0.439, 'accuracy': 0.75, 'ece': 0.125}
    """
    labels, probabilities = as_labels(labels), as_numbers(probabilities, "probabilities")
    _, users = as_keys(users, "users")
    same_length(labels=labels, probabilities=probabilities, users=users)
    if not len(labels):
        raise ValueError("labels: expected at least one event; got none")
    outside = np.flatnonzero((probabilities < 0) | (probabilities > 1))
    if len(outside):
        row = outside[0]
        raise ValueError(f"probabilities: expected [0, 1]; got {probabilities[row]} in row {row}")
    label_probability = np.clip(np.where(labels == 1, probabilities, 1 - probabilities), 1e-15, None)
    return {
        "auc": auc(labels, probabilities),
        "gauc": gauc(labels, probabilities, users),
        "log_loss": float(-np.log(label_probability).mean()),
        "accuracy": float(((probabilities > 0.5) == (labels == 1)).mean()),
        "ece": ece(probabilities, labels),
    }
