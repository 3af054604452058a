"""Classical recommenders: small, fast, and the baselines of every comparison."""

from reasonrec_fast.models.classical.bias import Bias
from reasonrec_fast.models.classical.fm import FM, FMConfig
from reasonrec_fast.models.classical.lightgcn import LightGCN, LightGCNConfig
from reasonrec_fast.models.classical.popularity import Popularity

__all__ = ["FM", "Bias", "FMConfig", "LightGCN", "LightGCNConfig", "Popularity"]
