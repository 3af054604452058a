"""Metrics over predictions; no model inside."""

from reasonrec_fast.evaluation.bootstrap import Interval, paired_differences
from reasonrec_fast.evaluation.ctr import auc, calibrated_log_loss, gauc, user_aucs

__all__ = ["Interval", "auc", "calibrated_log_loss", "gauc", "paired_differences", "user_aucs"]
