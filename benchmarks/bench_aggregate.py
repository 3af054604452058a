"""aggregate beside torch's sparse product, in COO (as LightGCN-PyTorch and RecBole run it) and CSR."""

import pytest
import torch

from reasonrec_fast import ops

DIM, LAYERS = 64, 3


def adjacency(graph, layout):
    users, items = graph.edges()
    items = items + graph.num_users
    nodes = graph.num_users + graph.num_items
    degree = torch.cat([graph.user_degrees(), graph.item_degrees()]).float()
    index = torch.cat([torch.stack([users, items]), torch.stack([items, users])], 1)
    values = (degree[index[0]] * degree[index[1]]).rsqrt()
    matrix = torch.sparse_coo_tensor(index, values, (nodes, nodes)).coalesce()
    return matrix if layout == "coo" else matrix.to_sparse_csr()


def mean_of_layers(matrix, x):
    total = x
    for _ in range(LAYERS):
        x = torch.sparse.mm(matrix, x)
        total = total + x
    return total / (LAYERS + 1)


@pytest.mark.benchmark(group="aggregate")
@pytest.mark.parametrize("contender", ["reasonrec_fast", "torch_coo", "torch_csr"])
def bench_aggregate(benchmark, graph, contender):
    x = torch.randn(graph.num_users + graph.num_items, DIM)
    expected = ops.aggregate(graph, x, layers=LAYERS, combine="mean")
    if contender == "reasonrec_fast":
        found = benchmark(lambda: ops.aggregate(graph, x, layers=LAYERS, combine="mean"))
    else:
        matrix = adjacency(graph, contender.removeprefix("torch_"))
        found = benchmark(lambda: mean_of_layers(matrix, x))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
