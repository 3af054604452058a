"""Base of the classical models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from reasonrec_fast.arrays import as_count
from reasonrec_fast.data import UNLABELLED, DataError, Histories, Interactions
from reasonrec_fast.data.tables import TableLike, as_interactions
from reasonrec_fast.devices import on_device, resolve_device
from reasonrec_fast.evaluation import auc, ranking_metrics
from reasonrec_fast.models.classical.identifiers import Identifiers, is_text
from reasonrec_fast.models.classical.retrieval import Recommendations, Retriever, retrieve, top_k
from reasonrec_fast.models.classical.rows import checked_rows, digest_of_rows, with_negatives
from reasonrec_fast.models.classical.storage import (
    FORMAT,
    IDENTIFIERS,
    WEIGHTS,
    State,
    check_identifiers,
    read_state,
    write_state,
)
from reasonrec_fast.models.classical.user_items import UserItemModule
from reasonrec_fast.models.ties import ranked_with_ties
from reasonrec_fast.pretrained import PushToHub, load_folder, save_folder
from reasonrec_fast.settings import settings_from
from reasonrec_fast.training.progress import Progress

USERS_PER_BLOCK = 2048
"""Users who are scored at a time, at most."""
_SCORES_PER_BLOCK = 1 << 25  # scores of users and all items in memory at a time

Kind = TypeVar("Kind", bound="ClassicalRecommender")


class ClassicalRecommender(PushToHub, UserItemModule):
    """Base of the classical models: a torch module that is fitted to :class:`~reasonrec_fast.data.Interactions`.

    It keeps the histories of its users (``histories`` and ``seen``, see
    :class:`~reasonrec_fast.models.classical.user_items.UserItemModule`): :meth:`fit` sets both to the training events,
    :meth:`set_histories` to anything else. It also keeps the training events' keys (``fitted_events``, see
    :meth:`~reasonrec_fast.data.Interactions.keys`).
    Users and items are vectors of indices in any form (numpy, torch, pandas by position, lists), or of identifiers.

    A model trains and scores on ``device``, and moves as every module does (:meth:`~torch.nn.Module.to`), before or
    after it is fitted. Initial weights and the order of batches are drawn on the host, and are the same for every
    device; a model that was saved on one device loads on any.

    Args:
        config: hyper-parameters, a dataclass.
        device: of the model; by default the GPU where there is one.

    Raises:
        TypeError: the configuration of another model.
        ValueError: a device that this machine does not have.
    """

    config_type: ClassVar[type]
    learns_labels: bool = False
    """Whether it is trained on dislikes too."""

    def __init__(self, config: Any = None, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config = self.config_type() if config is None else config
        if not isinstance(self.config, self.config_type):
            raise TypeError(f"config: expected a {self.config_type.__name__}; got {type(self.config).__name__}")
        self.device = resolve_device(device)
        self.training_digest = ""
        self.fitted_events = np.zeros(0, dtype=np.uint64)

    # Every model defines:

    @abstractmethod
    def build_parameters(self, sizes: dict[str, int]) -> None:
        """Create parameters and buffers.

        Args:
            sizes: determine their shapes: ``users``, ``items`` and whatever else the model needs.
        """

    @abstractmethod
    def fit_rows(
        self,
        data: Interactions,
        train: np.ndarray,
        validation: np.ndarray | None,
        *,
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        """Train on rows that :meth:`fit` has checked, and set the histories."""

    @abstractmethod
    def scores(self, users: np.ndarray) -> torch.Tensor:
        """Scores of all items, ``[B, I]``."""

    # A model may override:

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        """Refuse, before any work, rows ``train`` that the model cannot be trained on.

        Raises:
            DataError: nothing to learn from, or more items than the model can hold.
        """

    def _restore(self, folder: Path, sizes: dict[str, int]) -> None:
        """Create the parameters of a saved model, before its tensors are loaded."""
        self.build(sizes)

    def _write_more(self, folder: Path) -> None:
        """Write the model's further files."""

    # Every model has:

    def fit(
        self: Kind,
        data: Interactions | TableLike,
        train: np.ndarray | None = None,
        validation: np.ndarray | None = None,
        *,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Kind:
        """Train on rows ``train``.

        Args:
            data: the events, or a DataFrame or a file of them (:func:`~reasonrec_fast.data.load_interactions`).
            train, validation: rows, ascending; by default all that have a label, and none. Models that train in epochs
                keep the epoch with the best validation value. A model that learns labels and is given likes alone is
                trained on as many drawn negatives: items that the user has not had among these rows.
            checkpoint: file with the state of the training; if it exists, training resumes from it.
            progress: called after every epoch with the loss and, with validation, the current and the best value.

        Raises:
            DataError: rows outside the table, a duplicate row, or no positive event. The model is unchanged then.
            ValueError: a checkpoint of another configuration or of other events.
        """
        data = as_interactions(data)
        if train is None:
            train = np.flatnonzero(data.labels != UNLABELLED)
        train, validation = checked_rows(data, train, validation, labels=self.learns_labels)
        self.check_events(data, train)
        table, rows, held_out = data, train, validation
        if self.learns_labels and (data.labels[train] == 1).all():
            table, rows, held_out = with_negatives(data, train, validation, getattr(self.config, "seed", 0))
        self.training_digest = digest_of_rows(table, rows, held_out)
        self.fit_rows(table, rows, held_out, checkpoint=checkpoint, progress=progress)
        self._users, self._items = Identifiers(data.user_ids, "users"), Identifiers(data.catalog.ids, "items")
        self.fitted_events = data.keys(np.concatenate([train, [] if validation is None else validation]))
        self.like = data.like
        if table is not data:
            self.set_histories_from(data, train)
        return self

    def to(self: Kind, *arguments: Any, **options: Any) -> Kind:
        """As ``nn.Module.to``; a device that this machine does not have is refused by name."""
        device = options.get("device", arguments[0] if arguments else None)
        if isinstance(device, str | torch.device):
            resolve_device(device)
        return super().to(*arguments, **options)

    def _apply(self: Kind, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Kind:
        """Called by ``to``, ``cpu`` and ``cuda``; a model without tensors remembers the device for later."""
        super()._apply(fn, recurse)
        self.device = fn(torch.empty(0, device=self.device)).device
        return self

    def build(self: Kind, sizes: dict[str, int]) -> Kind:
        """Create parameters and buffers on the model's device."""
        self.sizes = sizes
        self.build_parameters(sizes)
        return self.to(self.device)

    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores of pairs, float32 ``[N]``; larger is likelier.

        Args:
            users, items: indices or identifiers (text), ``[N]`` both.

        Raises:
            DataError: different lengths, or a user or an item that the model does not know (with its row).
        """
        users, items = self.pairs(users, items)
        scores = np.empty(len(users), dtype=np.float32)
        user_indices, positions = np.unique(users, return_inverse=True)
        block = self._users_per_block
        for first in range(0, len(user_indices), block):
            rows = np.flatnonzero((positions >= first) & (positions < first + block))
            of_users = self.scores(user_indices[first : first + block]).float()
            of_pairs = on_device(positions[rows] - first, self.device), on_device(items[rows], self.device)
            scores[rows] = of_users[of_pairs].cpu().numpy()
        return scores

    def score_events(self, data: Interactions, rows: np.ndarray) -> np.ndarray:
        """Scores of events, float64 ``[N]``, by the current histories (:meth:`set_histories`) whatever the events'
        times.

        Args:
            data: a table in the model's own indices.
            rows: of the events, ``[N]``.
        """
        return self.score(data.users[rows], data.items[rows]).astype(np.float64)

    @torch.inference_mode()
    def recommend(self, users: np.ndarray, k: int, *, exclude: Histories | None = None) -> Recommendations:
        """The top ``k`` items of each user, without those that the user has had.

        Args:
            users: indices or identifiers (text), ``[B]``; the items of the result are of the same form.
            k: how many, at least 0.
            exclude: items to leave out, for all users; ``seen`` by default.

        Raises:
            DataError: a user that the model or ``exclude`` does not know (with the row), an item in ``exclude`` that
                the model does not know, or scores that are NaN.
        """
        by_identifier = is_text(users)
        users, k = self.user_indices(users), as_count(k, "k", error=DataError)
        exclude = self.seen if exclude is None else self._checked(exclude, "exclude")
        exclude.known(users)
        result = retrieve(
            self._retriever(), users, k, exclude, num_items=self.sizes["items"], block=self._users_per_block
        )
        return Recommendations(result.scores, self._items.named(result.items)) if by_identifier else result

    @property
    def _users_per_block(self) -> int:
        """Users whose scores of all items are in memory at a time."""
        return max(min(USERS_PER_BLOCK, _SCORES_PER_BLOCK // max(self.sizes["items"], 1)), 1)

    def _retriever(self) -> Retriever:
        return lambda users, k, exclude: top_k(self.scores(users).float(), k, exclude)

    def ndcg(self, data: Interactions, rows: np.ndarray, k: int = 10) -> float:
        """Mean NDCG@k of the users of some rows: the validation value of ranking models.

        A user's positive items among the rows are relevant, except those that the user has already seen, which
        recommendations leave out.
        """
        rows = rows[data.labels[rows] == 1]
        users, positions = np.unique(data.users[rows], return_inverse=True)
        relevant = Histories.from_pairs(len(users), positions, data.items[rows]).without(self.seen.select(users))
        items, ties = ranked_with_ties(self, users, relevant, self.seen, k, self.sizes["items"])
        ndcg = ranking_metrics(items, relevant, [k], ties=ties)[f"ndcg@{k}"]
        defined = ndcg[~np.isnan(ndcg)]  # NaN: a user without relevant items
        return float(defined.mean()) if len(defined) else float("nan")

    def auc(self, data: Interactions, rows: np.ndarray) -> float:
        """AUC of the labelled events among some rows: the validation value of CTR models."""
        rows = rows[data.labels[rows] != UNLABELLED]
        return auc(data.labels[rows], self.score(data.users[rows], data.items[rows]))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights and histories (safetensors), identifiers and settings (JSON). A model in the folder is replaced
        as a whole, after everything is written (:func:`~reasonrec_fast.files.atomic_write_folder`).

        Raises:
            DataError: a model that is not fitted; nothing is written.
        """
        self._check_fitted()
        save_folder(folder, type(self).__name__, FORMAT, (WEIGHTS, IDENTIFIERS), self._write_files)

    def _write_files(self, folder: Path) -> dict[str, Any]:
        weights = self.state_dict()
        write_state(folder, State(weights, self.histories, self.seen, self.fitted_events, self._users, self._items))
        self._write_more(folder)
        settings = {"config": asdict(self.config), "sizes": self.sizes, "like": self.like}
        return settings | {"events": self.training_digest}

    @classmethod
    def from_pretrained(
        cls: type[Kind],
        folder: str | Path,
        *,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> Kind:
        """Read what :meth:`save_pretrained` wrote, on any device.

        Args:
            folder: the model, or a repository of the Hugging Face hub (``"user/repository"``).
            device: of the model; by default the GPU where there is one.
            revision, token: of the repository.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: the folder holds something else, or a device that this machine does not have.
        """

        def read(folder: Path, stored: dict[str, Any]) -> Kind:
            return cls._load(folder, stored, device)

        return load_folder(folder, cls.__name__, FORMAT, read, revision=revision, token=token)

    @classmethod
    def _load(cls: type[Kind], folder: Path, stored: dict[str, Any], device: torch.device | str | None) -> Kind:
        model = cls(settings_from(cls.config_type, stored["config"], str(folder)), device=device)
        model._restore(folder, stored["sizes"])
        model.like, model.training_digest = stored.get("like"), stored.get("events", "")
        state = read_state(folder)
        model.load_state_dict(state.weights)  # first: weights of other sizes are refused as such
        check_identifiers(folder, state, model.sizes["users"], model.sizes["items"])
        model.fitted_events, model._users, model._items = state.fitted_events, state.users, state.items
        return model.eval().set_histories(state.histories, seen=None if state.seen is state.histories else state.seen)
