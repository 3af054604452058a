"""OptiRAG-Rec: retrieval by graph convolution, a language model, multi-head early exit; and its stack alone."""

from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.model import OptiRAG
from reasonrec_fast.models.optirag.scorer import Predictions
from reasonrec_fast.models.optirag.stack import CTRStack
from reasonrec_fast.models.optirag.stack_config import CTRStackConfig

__all__ = ["CTRStack", "CTRStackConfig", "OptiRAG", "OptiRAGConfig", "Predictions"]
