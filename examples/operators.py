"""Three operators beside what they replace in torch, with the largest difference between both."""

import torch

from reasonrec_fast import InteractionGraph, ops


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, items = (torch.randn(rows, 64, generator=generator) for rows in (32, 5_000))

    # The best items of each query, without the [32, 5000] scores.
    best = ops.topk(queries, items, k=20)
    scores, _ = (queries @ items.T).topk(20)
    print(f"topk             {(best.values - scores).abs().max():.1e}")

    # Probability and entropy over 5,000 classes, without their logits; both are differentiable.
    statistics = ops.exit_confidence(queries, items, threshold=0.9)
    softmax = torch.distributions.Categorical(logits=queries @ items.T)
    print(f"exit_confidence  {(statistics.probability - softmax.probs.amax(1)).abs().max():.1e}")
    print(f"                 {(statistics.entropy - softmax.entropy()).abs().max():.1e}")

    # Two layers of LightGCN over users and items: normalised sums over neighbours, and the mean of the layers.
    users, bought = torch.randint(32, (400,), generator=generator), torch.randint(5_000, (400,), generator=generator)
    graph = InteractionGraph.from_edges(users, bought, num_users=32, num_items=5_000)
    vectors = torch.cat([queries, items])
    adjacency = torch.zeros(5_032, 5_032)
    adjacency[users, 32 + bought] = adjacency[32 + bought, users] = 1
    scale = adjacency.sum(1).clamp(min=1).rsqrt()
    adjacency *= scale[:, None] * scale
    expected = (vectors + adjacency @ vectors + adjacency @ (adjacency @ vectors)) / 3
    print(f"aggregate        {(ops.aggregate(graph, vectors, layers=2, combine='mean') - expected).abs().max():.1e}")


if __name__ == "__main__":
    main()
