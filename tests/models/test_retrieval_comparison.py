"""What of the comparison of retrievals needs no trained model: the times of the three ways."""

import torch

from reasonrec_fast.data import split_by_time
from reasonrec_fast.experiments import retrieval


class RandomEncoder:
    """Replaces the sentence encoder: a unit vector for each text."""

    def __init__(self, device):
        assert device == "cpu"

    def encode(self, texts):
        vectors = torch.randn(len(texts), 8, generator=torch.Generator().manual_seed(len(texts)))
        return torch.nn.functional.normalize(vectors, dim=1)


def test_times_of_the_three_ways(events, monkeypatch):
    monkeypatch.setattr(retrieval, "TextEncoder", RandomEncoder)
    times = retrieval.retrieval_times(events, split_by_time(events), users=3, k=5, device="cpu")
    assert sorted(times) == ["gcn", "text", "text_cached"]
    assert all(milliseconds > 0 for milliseconds in times.values())
