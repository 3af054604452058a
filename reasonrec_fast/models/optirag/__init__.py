"""OptiRAG-Rec: retrieval by graph convolution, a language model, multi-head early exit."""

from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.model import OptiRAG
from reasonrec_fast.models.optirag.scorer import Predictions

__all__ = ["OptiRAG", "OptiRAGConfig", "Predictions"]
