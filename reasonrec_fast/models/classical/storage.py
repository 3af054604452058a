"""The files of a saved classical model, beside its ``config.json``: tensors, and identifiers of users and items."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from reasonrec_fast.data import Histories
from reasonrec_fast.files import read_json, read_tensors, write_json, write_tensors
from reasonrec_fast.models.classical.identifiers import Identifiers

FORMAT = 1
WEIGHTS, IDENTIFIERS = "model.safetensors", "identifiers.json"

# Names of tensors in saved models. They stay as they are, whatever the attributes are called.
_LIKED, _SEEN, _FITTED_EVENTS, _WEIGHT_PREFIX = "histories", "had", "learnt", "model."


class State(NamedTuple):
    """What a fitted model keeps beside its settings.

    Attributes:
        weights: ``state_dict`` of the module.
        histories: what each user liked.
        seen: what each user has had; the same object as ``histories`` where the two do not differ.
        fitted_events: keys of the events that the model was fitted on, uint64 ``[E]``.
        users, items: identifiers by index; empty for a model that was saved before identifiers were kept.
    """

    weights: dict[str, torch.Tensor]
    histories: Histories
    seen: Histories
    fitted_events: np.ndarray
    users: Identifiers
    items: Identifiers


def write_state(folder: Path, state: State) -> None:
    """Write :data:`WEIGHTS` and :data:`IDENTIFIERS` into a folder."""
    tensors = {_WEIGHT_PREFIX + name: value for name, value in state.weights.items()}
    csr = {_LIKED: state.histories} | ({} if state.seen is state.histories else {_SEEN: state.seen})
    for name, histories in csr.items():
        tensors[f"{name}.indptr"] = torch.from_numpy(histories.indptr)
        tensors[f"{name}.items"] = torch.from_numpy(histories.items)
    tensors[_FITTED_EVENTS] = torch.from_numpy(state.fitted_events.view(np.int64))
    write_tensors(folder / WEIGHTS, tensors)
    write_json(folder / IDENTIFIERS, {"users": list(state.users.ids), "items": list(state.items.ids)})


def read_state(folder: Path) -> State:
    """Read what :func:`write_state` wrote, of this or an older version."""
    tensors = read_tensors(folder / WEIGHTS)
    fitted_events = np.zeros(0, dtype=np.uint64)
    if _FITTED_EVENTS in tensors:
        fitted_events = tensors.pop(_FITTED_EVENTS).numpy().view(np.uint64)
    csr = {
        name: Histories(*(tensors.pop(f"{name}.{part}").numpy() for part in ("indptr", "items")))
        for name in (_LIKED, _SEEN)
        if f"{name}.indptr" in tensors
    }
    return State(
        {name.removeprefix(_WEIGHT_PREFIX): value for name, value in tensors.items()},
        csr[_LIKED],
        csr.get(_SEEN, csr[_LIKED]),
        fitted_events,
        *_read_identifiers(folder),
    )


def _read_identifiers(folder: Path) -> tuple[Identifiers, Identifiers]:
    names = read_json(folder / IDENTIFIERS) if (folder / IDENTIFIERS).is_file() else {"users": (), "items": ()}
    return Identifiers(names["users"], "users"), Identifiers(names["items"], "items")


def check_identifiers(folder: Path, state: State, num_users: int, num_items: int) -> None:
    """Refuse identifiers that do not fit the weights.

    There may be more users than in training: those whom ``set_histories_from_table`` added.

    Args:
        folder: of the model, for the error.
        state: what :func:`read_state` read from it.
        num_users, num_items: of training, as the loaded weights have them.

    Raises:
        ValueError: too few users, or another number of items.
    """
    users, items = len(state.users), len(state.items)
    if items and (users < num_users or items != num_items):
        raise ValueError(
            f"{folder}: expected identifiers of {num_users} users and {num_items} items, as the weights have; got "
            f"{users} and {items}"
        )
