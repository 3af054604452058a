"""S2AD (ACL 2026 Findings 631): a judge of images that compares, then knows, on any scale. In parts so far."""

from reasonrec_fast.data.percentiles import Percentiles
from reasonrec_fast.models.s2ad.bank import ReferenceBank, References
from reasonrec_fast.models.s2ad.buttons import Buttons
from reasonrec_fast.models.s2ad.positions import PositionConfig
from reasonrec_fast.models.s2ad.scales import AnchorScale, LetterScale, NumericScale

__all__ = [
    "AnchorScale",
    "Buttons",
    "LetterScale",
    "NumericScale",
    "Percentiles",
    "PositionConfig",
    "ReferenceBank",
    "References",
]
