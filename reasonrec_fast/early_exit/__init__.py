"""Early exit of decoder-only transformers over packed batches with shared prefixes."""

from reasonrec_fast.early_exit.answers import Answers
from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.early_exit.heads import ExitHead, exit_layers
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.early_exit.ranker import EarlyExitRanker
from reasonrec_fast.early_exit.requests import Request
from reasonrec_fast.early_exit.scores import RowScores

__all__ = [
    "Answers",
    "EarlyExitModel",
    "EarlyExitRanker",
    "ExitHead",
    "ExitPolicy",
    "Request",
    "RowScores",
    "exit_layers",
]
