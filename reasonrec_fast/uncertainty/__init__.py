"""Calibration of confidences, thresholds on them, and what they are worth."""

from reasonrec_fast.uncertainty.guarantee import Guarantee, guarantee_thresholds, hoeffding_bentkus
from reasonrec_fast.uncertainty.selective import Reliability, aurc, ece, reliability, risk_coverage
from reasonrec_fast.uncertainty.temperature import fit_temperature
from reasonrec_fast.uncertainty.thresholds import Limit, choose_thresholds, simulate

__all__ = [
    "Guarantee",
    "Limit",
    "Reliability",
    "aurc",
    "choose_thresholds",
    "ece",
    "fit_temperature",
    "guarantee_thresholds",
    "hoeffding_bentkus",
    "reliability",
    "risk_coverage",
    "simulate",
]
