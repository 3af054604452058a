"""Calibration of confidences, and thresholds on them."""

from reasonrec_fast.uncertainty.temperature import fit_temperature
from reasonrec_fast.uncertainty.thresholds import Limit, choose_thresholds, simulate

__all__ = ["Limit", "choose_thresholds", "fit_temperature", "simulate"]
