"""Click-through prediction: DCN-v2 on a table of labelled events, evaluated on each user's last fifth.

Run as ``python examples/ctr.py``; ``--epochs 10`` trains longer, until validation gets no better.
"""

import argparse

import numpy as np

from reasonrec_fast import DCNv2, DCNv2Config, load_movielens_small, split_by_time
from reasonrec_fast.evaluation import ctr_metrics, paired_differences


def main(epochs: int) -> None:
    events = load_movielens_small()  # liked: rated 4 or more; of your own: load_interactions("events.csv")
    split = split_by_time(events)
    model = DCNv2(DCNv2Config(epochs=epochs), device="cpu").fit(events, split.train, split.validation)

    users, items, labels = (column[split.test] for column in (events.users, events.items, events.labels))
    logits = model.score(users, items).astype(np.float64)
    for name, value in ctr_metrics(labels, 1 / (1 + np.exp(-logits)), users).items():
        print(f"{name:10} {value:.4f}")

    likes = np.bincount(events.items[split.train], events.labels[split.train], minlength=events.num_items)
    for name, interval in paired_differences(labels, users, logits, likes[items]).items():
        print(f"{name} minus popularity's: {interval}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    main(parser.parse_args().epochs)
