"""ReasonRec (arXiv 2606.28357): observe, deliberate, act."""

from reasonrec_fast.models.reasonrec.chain import Chain, ChainWriter
from reasonrec_fast.models.reasonrec.chain_features import chain_features
from reasonrec_fast.models.reasonrec.config import AgentConfig, ChainConfig, ReasonRecConfig, TitleAgentConfig
from reasonrec_fast.models.reasonrec.model import Answers, ReasonRec
from reasonrec_fast.models.reasonrec.reasons import Reason

__all__ = [
    "AgentConfig",
    "Answers",
    "Chain",
    "ChainConfig",
    "ChainWriter",
    "Reason",
    "ReasonRec",
    "ReasonRecConfig",
    "TitleAgentConfig",
    "chain_features",
]
