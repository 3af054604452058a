"""LLM- and VLM-based recommendation, fast enough to use.

>>> import reasonrec_fast
>>> reasonrec_fast.InteractionGraph.from_edges([0, 1], [1, 0]).num_edges
2
"""

import importlib
from typing import TYPE_CHECKING, Any

from reasonrec_fast import ops
from reasonrec_fast.graph import InteractionGraph

if TYPE_CHECKING:
    from reasonrec_fast.early_exit import EarlyExitRanker
    from reasonrec_fast.models.optirag import OptiRAG

__version__ = "0.1.0"
__all__ = ["EarlyExitRanker", "InteractionGraph", "OptiRAG", "ops"]

_SYSTEMS = {"EarlyExitRanker": "reasonrec_fast.early_exit", "OptiRAG": "reasonrec_fast.models.optirag"}


def __getattr__(name: str) -> Any:
    """Load the systems, and with them transformers, only when they are asked for."""
    if name in _SYSTEMS:
        return getattr(importlib.import_module(_SYSTEMS[name]), name)
    raise AttributeError(f"module 'reasonrec_fast' has no attribute {name!r}")
