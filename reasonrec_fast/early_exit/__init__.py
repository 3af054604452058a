"""Early exit of decoder-only transformers over packed batches with shared prefixes."""

from reasonrec_fast.early_exit.engine import EarlyExitModel, Ranked
from reasonrec_fast.early_exit.heads import ExitHead, exit_layers
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.early_exit.ranker import EarlyExitRanker, Request

__all__ = ["EarlyExitModel", "EarlyExitRanker", "ExitHead", "ExitPolicy", "Ranked", "Request", "exit_layers"]
