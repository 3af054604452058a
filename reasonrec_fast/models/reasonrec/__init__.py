"""ReasonRec (arXiv 2606.28357): observe, deliberate, act."""

from reasonrec_fast.models.reasonrec.config import AgentConfig, ReasonRecConfig
from reasonrec_fast.models.reasonrec.model import Answers, ReasonRec
from reasonrec_fast.models.reasonrec.reasons import Reason

__all__ = ["AgentConfig", "Answers", "Reason", "ReasonRec", "ReasonRecConfig"]
