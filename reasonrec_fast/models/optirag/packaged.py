"""The models that come with the package: adapters and heads that ``make train-demo`` makes."""

from __future__ import annotations

from pathlib import Path

PRETRAINED = Path(__file__).resolve().parent / "pretrained"
MOVIELENS = PRETRAINED / "movielens"
"""OptiRAG-Rec on MovieLens latest-small, without the training events: call ``refit_retriever`` before it predicts."""
MOVIELENS_FULL_DEPTH = PRETRAINED / "movielens-full-depth"
"""The same prompts without exits; in a checkout that has it."""
