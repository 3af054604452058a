"""What comes with the package: the adapters that ``make train-demo`` makes."""

from __future__ import annotations

from pathlib import Path

MOVIELENS_CHAINS = Path(__file__).resolve().parent / "pretrained" / "movielens-chains"
"""A :class:`~reasonrec_fast.models.reasonrec.chain.ChainWriter` that learnt from MovieLens latest-small."""
