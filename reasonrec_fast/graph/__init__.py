"""The user–item interaction graph."""

from reasonrec_fast.graph.interaction import InteractionGraph

__all__ = ["InteractionGraph"]
