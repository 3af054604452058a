"""Metrics over predictions; no model inside."""

from reasonrec_fast.evaluation.bootstrap import Interval, paired_differences
from reasonrec_fast.evaluation.ctr import auc, fit_platt, gauc, platt_log_loss, user_aucs

__all__ = ["Interval", "auc", "fit_platt", "gauc", "paired_differences", "platt_log_loss", "user_aucs"]
