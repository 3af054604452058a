"""Early exit of decoder-only transformers over packed batches with shared prefixes."""

from reasonrec_fast.early_exit.backbone import Backbone
from reasonrec_fast.early_exit.engine import EarlyExitModel, ExitPolicy, Ranked
from reasonrec_fast.early_exit.heads import ExitHead, exit_layers
from reasonrec_fast.early_exit.layout import PackedLayout, TokenGroup
from reasonrec_fast.early_exit.prefix_cache import PrefixCache

__all__ = [
    "Backbone",
    "EarlyExitModel",
    "ExitHead",
    "ExitPolicy",
    "PackedLayout",
    "PrefixCache",
    "Ranked",
    "TokenGroup",
    "exit_layers",
]
