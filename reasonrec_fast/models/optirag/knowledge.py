"""What a fitted model knows of the world: the training events, and the retriever trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from reasonrec_fast.data.interactions import Catalog, Interactions
from reasonrec_fast.files import read_json, write_json, write_tensors
from reasonrec_fast.graph import InteractionGraph
from reasonrec_fast.models.optirag.retriever import Retriever


@dataclass(frozen=True)
class Knowledge:
    """Training events with their users and items, and the retriever.

    Attributes:
        events: the training events alone.
        retriever: over the users and items of ``events``.
    """

    events: Interactions
    retriever: Retriever

    def extended(self, other: Interactions) -> tuple[Interactions, np.ndarray, np.ndarray, Retriever]:
        """The training events together with another table, matched by identifiers.

        Users and items that are new get new indices; the retriever knows nothing of them (a user is folded in from
        their history wherever they are needed).

        Returns:
            the joint table, the rows of the training events in it, the rows of ``other`` (in its order), and the
            retriever over the joint users and items. An event that is in both is there once as a training event.
        """
        mine, theirs = self.events, other
        user_ids, user_map = _joint(mine.user_ids, theirs.user_ids)
        item_ids, item_map = _joint(mine.catalog.ids, theirs.catalog.ids)
        catalog = _joint_catalog(mine.catalog, theirs.catalog, item_ids, item_map)
        users = np.concatenate([mine.users, user_map[theirs.users]])
        items = np.concatenate([mine.items, item_map[theirs.items]])
        labels = np.concatenate([mine.labels, theirs.labels])
        timestamps = np.concatenate([mine.timestamps, theirs.timestamps])
        source = np.arange(len(users))
        # The same labelled event in both tables would count twice: map theirs onto mine.
        known = {key: row for row, key in enumerate(zip(users, items, timestamps, strict=True)) if row < len(mine)}
        for row in range(len(mine), len(users)):
            source[row] = known.get((users[row], items[row], timestamps[row]), row)
        kept = np.flatnonzero(source == np.arange(len(users)))
        order = kept[np.argsort(timestamps[kept], kind="stable")]
        place = np.empty(len(users), dtype=np.int64)
        place[order] = np.arange(len(order))
        place = place[source]
        joint = Interactions(users[order], items[order], labels[order], timestamps[order], user_ids, catalog)
        retriever = self.retriever.padded(len(user_ids), len(item_ids))
        return joint, np.sort(place[: len(mine)]), place[len(mine) :], retriever

    def save(self, folder: Path) -> None:
        """Write ``events.safetensors``, ``items.json`` and ``graph.safetensors`` (each whole or not at all)."""
        events = self.events
        tensors = {
            "users": torch.from_numpy(events.users),
            "items": torch.from_numpy(events.items),
            "labels": torch.from_numpy(events.labels),
            "timestamps": torch.from_numpy(events.timestamps),
            "item_embeddings": self.retriever.item_embeddings,
            "item_bias": self.retriever.item_bias,
        }
        write_tensors(folder / "events.safetensors", tensors)
        self.retriever.graph.save(folder / "graph.safetensors")
        catalog = events.catalog
        write_json(
            folder / "items.json",
            {
                "users": list(events.user_ids),
                "items": list(catalog.ids),
                "titles": list(catalog.titles),
                "attributes": {name: [list(v) for v in column] for name, column in catalog.attributes.items()},
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Knowledge:
        """Read what :meth:`save` wrote."""
        tensors = load_file(folder / "events.safetensors")
        words = read_json(folder / "items.json")
        catalog = Catalog(
            words["items"],
            words["titles"],
            {name: [tuple(values) for values in column] for name, column in words["attributes"].items()},
        )
        users, items, labels, times = (tensors[name].numpy() for name in ("users", "items", "labels", "timestamps"))
        graph = InteractionGraph.load(folder / "graph.safetensors")
        retriever = Retriever.from_items(graph, tensors["item_embeddings"], tensors["item_bias"])
        return cls(Interactions(users, items, labels, times, words["users"], catalog), retriever)


def _joint(mine: Sequence[str], theirs: Sequence[str]) -> tuple[list[str], np.ndarray]:
    index = {name: place for place, name in enumerate(dict.fromkeys([*mine, *theirs]))}
    return list(index), np.array([index[name] for name in theirs], dtype=np.int64)


def _joint_catalog(mine: Catalog, theirs: Catalog, ids: list[str], item_map: np.ndarray) -> Catalog:
    """Their titles and attributes for items that are new; ours for the rest."""
    new = [(place, index) for place, index in enumerate(item_map) if index >= len(mine)]
    titles = [*mine.titles, *(theirs.titles[place] for place, _ in new)]
    attributes = {}
    for name in dict.fromkeys([*mine.attributes, *theirs.attributes]):
        own = list(mine.attributes.get(name, [()] * len(mine)))
        other = theirs.attributes.get(name, [()] * len(theirs))
        attributes[name] = [*own, *(other[place] for place, _ in new)]
    return Catalog(ids, titles, attributes)
