"""Metrics over predictions; no model inside."""

from reasonrec_fast.evaluation.bootstrap import Interval, mean_interval, paired_differences, paired_means
from reasonrec_fast.evaluation.ctr import auc, ctr_metrics, fit_platt, gauc, platt_log_loss, user_aucs
from reasonrec_fast.evaluation.duplicates import AlikePairs, near_duplicates, nearest_pairs
from reasonrec_fast.evaluation.judge import fit_logistic, judge_metrics
from reasonrec_fast.evaluation.opinion_noise import NoiseCeiling, nearest_pair_correlation, noise_ceiling
from reasonrec_fast.evaluation.ranking import (
    Ties,
    by_stratum,
    coverage,
    hits,
    novelty,
    popularity_strata,
    rank_candidates,
    ranking_metrics,
    sampled_candidates,
)
from reasonrec_fast.evaluation.text import distinct, feature_coverage, reference_ranks, text_metrics, without_names

__all__ = [
    "AlikePairs",
    "Interval",
    "NoiseCeiling",
    "Ties",
    "auc",
    "by_stratum",
    "coverage",
    "ctr_metrics",
    "distinct",
    "feature_coverage",
    "fit_logistic",
    "fit_platt",
    "gauc",
    "hits",
    "judge_metrics",
    "mean_interval",
    "near_duplicates",
    "nearest_pair_correlation",
    "nearest_pairs",
    "noise_ceiling",
    "novelty",
    "paired_differences",
    "paired_means",
    "platt_log_loss",
    "popularity_strata",
    "rank_candidates",
    "ranking_metrics",
    "reference_ranks",
    "sampled_candidates",
    "text_metrics",
    "user_aucs",
    "without_names",
]
