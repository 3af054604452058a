"""Serving: a ranker behind a queue that concurrent callers share."""

from reasonrec_fast.serving.service import RankingService

__all__ = ["RankingService"]
