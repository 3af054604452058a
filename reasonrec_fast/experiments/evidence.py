"""A baseline on the evidence alone, without a language model."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def evidence_regression(dense_features: np.ndarray, labels: np.ndarray) -> Pipeline:
    """A fitted logistic regression on standardised evidence: the simplest baseline.

    Args:
        dense_features: of the training requests, ``[N, F]``.
        labels: 1 for a like, ``[N]``.
    """
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(dense_features, labels)
