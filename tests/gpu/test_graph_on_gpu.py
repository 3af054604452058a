"""Graphs built on a GPU, by cupy and by torch."""

import pytest
import torch

from reasonrec_fast import InteractionGraph


@pytest.mark.parametrize("edges", [0, 1, 100_000])
@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_equals_the_host(library, edges, device):
    generator = torch.Generator().manual_seed(edges)
    users, items = (torch.randint(nodes, (edges,), generator=generator) for nodes in (300, 2000))
    ends = [users.to(device), items.to(device)]
    if library == "cupy":
        cupy = pytest.importorskip("cupy")
        if device == "cpu":
            pytest.skip("cupy needs a GPU")
        ends = [cupy.from_dlpack(end) for end in ends]
    result = InteractionGraph.from_edges(*ends, num_users=300, num_items=2000)
    expected = InteractionGraph.from_edges(users, items, num_users=300, num_items=2000)
    assert result.device.type == device
    for name, tensor in expected._tensors().items():
        assert torch.equal(getattr(result, name).cpu(), tensor), name
