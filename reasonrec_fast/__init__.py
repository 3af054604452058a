"""LLM- and VLM-based recommendation, fast enough to use.

>>> import reasonrec_fast
>>> reasonrec_fast.InteractionGraph.from_edges([0, 1], [1, 0]).num_edges
2
"""

from typing import TYPE_CHECKING, Any

from reasonrec_fast import ops
from reasonrec_fast.graph import InteractionGraph

if TYPE_CHECKING:
    from reasonrec_fast.models.optirag import OptiRAG

__version__ = "0.1.0"
__all__ = ["InteractionGraph", "OptiRAG", "ops"]


def __getattr__(name: str) -> Any:
    """Load the systems, and with them transformers, only when they are asked for."""
    if name == "OptiRAG":
        from reasonrec_fast.models.optirag import OptiRAG

        return OptiRAG
    raise AttributeError(f"module 'reasonrec_fast' has no attribute {name!r}")
