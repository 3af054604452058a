"""Classical recommenders: small, fast, and the baselines of every comparison."""

from reasonrec_fast.models.classical.base import Recommendations, Recommender
from reasonrec_fast.models.classical.bias import Bias
from reasonrec_fast.models.classical.bpr import BPR, BPRConfig
from reasonrec_fast.models.classical.fm import FM, FMConfig
from reasonrec_fast.models.classical.lightgcn import LightGCN, LightGCNConfig
from reasonrec_fast.models.classical.popularity import Popularity
from reasonrec_fast.models.classical.sasrec import SASRec, SASRecConfig

__all__ = [
    "BPR",
    "FM",
    "BPRConfig",
    "Bias",
    "FMConfig",
    "LightGCN",
    "LightGCNConfig",
    "Popularity",
    "Recommendations",
    "Recommender",
    "SASRec",
    "SASRecConfig",
]
