"""Early exit of decoder-only transformers over packed batches with shared prefixes."""

from reasonrec_fast.early_exit.backbone import Backbone
from reasonrec_fast.early_exit.engine import EarlyExitModel, ExitPolicy, Ranked
from reasonrec_fast.early_exit.heads import ExitHead, exit_layers
from reasonrec_fast.early_exit.layout import PackedLayout, TokenGroup
from reasonrec_fast.early_exit.prefix_cache import PrefixCache
from reasonrec_fast.early_exit.ranker import EarlyExitRanker, Request
from reasonrec_fast.early_exit.service import RankingService

__all__ = [
    "Backbone",
    "EarlyExitModel",
    "EarlyExitRanker",
    "ExitHead",
    "ExitPolicy",
    "PackedLayout",
    "PrefixCache",
    "Ranked",
    "RankingService",
    "Request",
    "TokenGroup",
    "exit_layers",
]
