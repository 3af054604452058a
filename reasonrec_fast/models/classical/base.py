"""What every classical model can do."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from reasonrec_fast import ops
from reasonrec_fast.arrays import as_count, as_index, same_length
from reasonrec_fast.data import UNLABELLED, Catalog, DataError, Histories, Interactions
from reasonrec_fast.data.interactions import check_like
from reasonrec_fast.data.tables import TableLike, as_interactions
from reasonrec_fast.devices import on_device, resolve_device
from reasonrec_fast.evaluation import auc, ranking_metrics
from reasonrec_fast.files import read_json, read_tensors, write_json, write_tensors
from reasonrec_fast.models.classical.identifiers import Identifiers, is_text
from reasonrec_fast.models.classical.rows import checked_rows, with_negatives
from reasonrec_fast.pretrained import PushToHub, load_folder, save_folder
from reasonrec_fast.training.progress import Progress

_logger = logging.getLogger("reasonrec_fast")

_FORMAT = 1
_WEIGHTS, _IDENTIFIERS = "model.safetensors", "identifiers.json"
_BATCH = 2048  # users at a time
_ENTRIES = 1 << 25  # scores of users and items at a time

Kind = TypeVar("Kind", bound="ClassicalRecommender")


class Recommendations(NamedTuple):
    """The best items of ``B`` users, best first; ``-inf`` and ``-1`` where there are no more.

    Attributes:
        scores: float32 ``[B, k]``.
        items: int64 ``[B, k]``; where users were given by identifiers, objects: identifiers, and None for no more.
    """

    scores: np.ndarray
    items: np.ndarray


class ClassicalRecommender(PushToHub, nn.Module, ABC):
    """Base of the classical models: a torch module that is fitted to :class:`~reasonrec_fast.data.Interactions`.

    A model knows what each user liked (``histories``), which models that fold users in read, and what each has had,
    liked or not (``seen``), which recommendations leave out. :meth:`fit` sets both to the training events,
    :meth:`set_histories` to anything else. Which events it was fitted on (``fitted_events``, their
    :meth:`~reasonrec_fast.data.Interactions.keys`) and from which rating on they were likes (``like``) goes with it.
    Users and items are asked for as vectors of their indices, in any form
    (numpy, torch, pandas by position, lists).

    It trains and scores on ``device``, and moves as every module does (:meth:`~torch.nn.Module.to`), before or after it
    is fitted. Initial weights and the order of batches are drawn on the host, alike for every device; what is saved on
    one device is loaded on any.

    Args:
        config: hyper-parameters, a dataclass.
        device: where the model lives; by default the GPU where there is one.

    Raises:
        TypeError: the configuration of another model.
        ValueError: a device that is not there.
    """

    config_type: ClassVar[type]
    ranks_all_items: bool = True
    learns_labels: bool = False
    """Whether dislikes teach it too."""

    def __init__(self, config: Any = None, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config = self.config_type() if config is None else config
        if not isinstance(self.config, self.config_type):
            raise TypeError(f"config: expected a {self.config_type.__name__}; got {type(self.config).__name__}")
        self.device = resolve_device(device)
        self.sizes: dict[str, int] = {}
        self.histories = self.seen = Histories.from_lists([])
        self.training_digest = ""
        self.fitted_events = np.zeros(0, dtype=np.uint64)
        self.like: float | None = None
        self._users, self._items = Identifiers((), "users"), Identifiers((), "items")

    # What a model says for itself.

    @abstractmethod
    def build_parameters(self, sizes: dict[str, int]) -> None:
        """Make parameters and buffers.

        Args:
            sizes: what decides their shapes: ``users``, ``items`` and whatever else the model needs.
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
        """Train on rows that :meth:`fit` has looked at, and :meth:`set_histories` them."""

    @abstractmethod
    def scores(self, users: np.ndarray) -> torch.Tensor:
        """Scores of all items, ``[B, I]``."""

    def check_served(self, users: np.ndarray) -> None:
        """Refuse users whom the model has no scores for: by default, those without a history.

        Raises:
            DataError: there is one (with the row).
        """
        self.histories.known(users)

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        """Find before any work that rows ``train`` teach the model nothing, or are too many.

        Raises:
            DataError: they are.
        """

    @property
    def serves_new_users(self) -> bool:
        """Whether users who were not in training are served by their histories (:meth:`set_histories_from_table`)."""
        return True

    # What follows from that.

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
                keep the one that does best on the second. A model that learns labels, and finds likes alone, is given
                as many negatives: items that the user has not had among these rows.
            checkpoint: file with the state of the training; what is there is gone on with.
            progress: is told of every epoch, its loss and, with validation, the value and the best one.

        Raises:
            DataError: rows that the table does not have, one twice, or none to learn from: no positive event. Nothing
                of the model has changed then.
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
        self.training_digest = _digest(table, rows, held_out)
        self.fit_rows(table, rows, held_out, checkpoint=checkpoint, progress=progress)
        self._users, self._items = Identifiers(data.user_ids, "users"), Identifiers(data.catalog.ids, "items")
        self.fitted_events, self.like = (
            data.keys(np.concatenate([train, [] if validation is None else validation])),
            data.like,
        )
        if table is not data:
            self.set_histories_from(data, train)
        return self

    def _restore(self, folder: Path, sizes: dict[str, int]) -> None:
        """Be ready for the tensors of a saved model."""
        self.build(sizes)

    def to(self: Kind, *arguments: Any, **options: Any) -> Kind:
        """As that of ``nn.Module``; a device that is not there is refused as everywhere."""
        wanted = options.get("device", arguments[0] if arguments else None)
        if isinstance(wanted, str | torch.device):
            resolve_device(wanted)
        return super().to(*arguments, **options)

    def _apply(self: Kind, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Kind:
        """What ``to``, ``cpu`` and ``cuda`` come down to; a model without tensors yet remembers where they belong."""
        super()._apply(fn, recurse)
        self.device = fn(torch.empty(0, device=self.device)).device
        return self

    def build(self: Kind, sizes: dict[str, int]) -> Kind:
        """Make parameters and buffers on the model's device."""
        self.sizes = sizes
        self.build_parameters(sizes)
        return self.to(self.device)

    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores of pairs, float32 ``[N]``; larger is likelier.

        Args:
            users, items: indices or identifiers (text), ``[N]`` both.

        Raises:
            DataError: not one item a user, or one that the model does not know (with its row).
        """
        users, items = self.pairs(users, items)
        found = np.empty(len(users), dtype=np.float32)
        user_indices, place = np.unique(users, return_inverse=True)
        for first in range(0, len(user_indices), self._block):
            rows = np.flatnonzero((place >= first) & (place < first + self._block))
            of_users = self.scores(user_indices[first : first + self._block]).float()
            pairs = on_device(place[rows] - first, self.device), on_device(items[rows], self.device)
            found[rows] = of_users[pairs].cpu().numpy()
        return found

    def score_events(self, data: Interactions, rows: np.ndarray) -> np.ndarray:
        """Scores of events of a table whose users and items are the model's own, float64 ``[N]``.

        A classical model scores by the histories that it was given (:meth:`set_histories`), whatever the events'
        moments.

        Args:
            data: with the model's own indices.
            rows: of the events, ``[N]``.
        """
        return self.score(data.users[rows], data.items[rows]).astype(np.float64)

    @torch.inference_mode()
    def recommend(self, users: np.ndarray, k: int, *, exclude: Histories | None = None) -> Recommendations:
        """The best ``k`` items of each user, without those that the user has had.

        Users who are given by identifiers are told items by identifiers.

        Args:
            users: indices or identifiers (text), ``[B]``.
            k: how many, at least 0.
            exclude: what to leave out, of all users; ``seen`` by default.

        Raises:
            DataError: a user that the model or ``exclude`` does not know (with the row), an item among those that the
                model does not know, or a model whose scores are NaN.
        """
        named = is_text(users)
        users, k = self.user_indices(users), as_count(k, "k", error=DataError)
        exclude = self.seen if exclude is None else self._checked(exclude, "exclude")  # ours was looked at before
        exclude.known(users)
        found = Recommendations(
            np.full((len(users), k), -np.inf, dtype=np.float32), np.full((len(users), k), -1, dtype=np.int64)
        )
        best = self._retriever()
        for first in range(0, len(users), self._block):
            user_indices = users[first : first + self._block]
            values, items = best(user_indices, min(k, self.sizes["items"]), exclude.select(user_indices))
            rows = slice(first, first + len(user_indices))
            found.scores[rows, : values.shape[1]], found.items[rows, : items.shape[1]] = values.cpu(), items.cpu()
        broken = np.isnan(found.scores) | (np.isneginf(found.scores) & (found.items >= 0))
        if broken.any():
            row, place = np.argwhere(broken)[0]
            raise DataError(
                f"users: expected scores that are numbers; got NaN for user {users[row]} in row {row} and item "
                f"{found.items[row, place]}: the model's weights are broken"
            )
        return Recommendations(found.scores, self._items.named(found.items)) if named else found

    @property
    def _block(self) -> int:
        """Users whose scores of all items are in memory at a time."""
        return max(min(_BATCH, _ENTRIES // max(self.sizes["items"], 1)), 1)

    def _retriever(self) -> Callable[[np.ndarray, int, Histories], tuple[torch.Tensor, torch.Tensor]]:
        """Retrieves the top-k items for each user, excluding the items of the given histories."""

        def best(users: np.ndarray, k: int, exclude: Histories) -> tuple[torch.Tensor, torch.Tensor]:
            scores = self.scores(users).float()
            rows = np.repeat(np.arange(len(users)), exclude.lengths)
            scores[on_device(rows, self.device), on_device(exclude.items, self.device)] = -torch.inf
            # A stable sort: of equal scores the lower index first, as in ops.topk.
            values, items = (part[:, :k] for part in scores.sort(dim=1, descending=True, stable=True))
            return values, items.masked_fill(values == -torch.inf, -1)

        return best

    def set_histories(self: Kind, histories: Histories, *, seen: Histories | None = None) -> Kind:
        """Set what each user liked and has had (see the class).

        Args:
            histories: what each user liked, oldest first.
            seen: what recommendations leave out; the same by default.

        Raises:
            DataError: an item that the model does not know (with its row), or other users in ``seen``.
        """
        self.histories = self._checked(histories, "histories")
        self.seen = self.histories if seen is None else self._checked(seen, "seen")
        same_length(DataError, histories=self.histories.lengths, seen=self.seen.lengths)
        return self

    @property
    def known_users(self) -> Identifiers:
        """The identifiers of the users whom the model knows, by index: those of training, and whom
        :meth:`set_histories_from_table` added.

        Raises:
            DataError: a model that is not fitted, or keeps no identifiers.
        """
        return self._kept(self._users)

    @property
    def known_items(self) -> Identifiers:
        """The identifiers of the items that the model knows, by index.

        Raises:
            DataError: as :attr:`known_users`.
        """
        return self._kept(self._items)

    def _kept(self, names: Identifiers) -> Identifiers:
        self._check_fitted()
        if not len(names):
            raise DataError("model: expected one that keeps identifiers; it was saved by an older version")
        return names

    def matched(self, data: Interactions | TableLike) -> Interactions:
        """A table in the model's own indices, by identifiers: in whatever order it is, and with users who are new.

        Users whom the model does not know come after those it knows. Events of items that it does not know are left
        out, which a line in the log tells.

        Args:
            data: events, or a DataFrame or a file of them.

        Raises:
            DataError: none of its items is known, likes from another rating on than in training, or a model that keeps
                no identifiers.
        """
        items, users = self.known_items, self.known_users
        data = as_interactions(data)
        check_like(data, self.like)
        known = np.array([items.index.get(name, -1) for name in data.catalog.ids], dtype=np.int64)
        kept = np.flatnonzero(known[data.items] >= 0)
        if len(data) and not len(kept):
            raise DataError(f"data: expected items that the model knows; got {data.catalog.ids[0]!r} and others")
        if len(kept) < len(data):
            _logger.warning("%d of %d events are of items that the model does not know, and are left out",
                            len(data) - len(kept), len(data))  # fmt: skip
        names = dict(users.index)
        places = np.array([names.setdefault(name, len(names)) for name in data.user_ids], dtype=np.int64)
        some = data.take(kept)
        catalog = Catalog(items.ids, items.ids)
        return replace(some, users=places[some.users], items=known[some.items], user_ids=list(names), catalog=catalog)

    def set_histories_from_table(self: Kind, data: Interactions | TableLike) -> Kind:
        """Take the events of a table as all that its users have had; users whom it does not have keep what they had.

        Users who are new are served by their identifiers from here on, by models that fold users in.

        Args:
            data: events, or a DataFrame or a file of them; matched by identifiers (:meth:`matched`).

        Raises:
            DataError: as :meth:`matched`.
        """
        data = as_interactions(data)
        table = self.matched(data)
        rows, users = np.arange(len(table)), Identifiers(table.user_ids, "users")
        # Of all events: who has had nothing but items that the model does not know is told of, too.
        who = np.unique(data.users[data.labels != UNLABELLED])
        told = np.array([users.index[data.user_ids[user]] for user in who], dtype=np.int64)
        liked, seen = (
            before.replaced(told, of(table, rows), table.num_users)
            for before, of in ((self.histories, Histories.of), (self.seen, Histories.seen))
        )
        self.set_histories(liked, seen=seen)
        self._users = users
        return self

    def set_histories_from(self: Kind, data: Interactions, rows: np.ndarray) -> Kind:
        """:meth:`set_histories` what some rows tell."""
        return self.set_histories(Histories.of(data, rows), seen=Histories.seen(data, rows))

    def user_indices(self, users: Any) -> np.ndarray:
        """Indices of users, int64 ``[B]``, who are given by index (whole numbers) or by identifier (text).

        Raises:
            DataError: no vector of whole numbers of at least 0 or of identifiers that the model knows, a user whom it
                has no scores for (with the row), or a model that is not fitted.
        """
        self._check_fitted()
        if is_text(users):
            found = self._users.find(users)
        else:
            found = np.require(as_index(users, "users", error=DataError), requirements="W")
        self.check_served(found)
        return found

    def pairs(self, users: Any, items: Any) -> tuple[np.ndarray, np.ndarray]:
        """Indices of users and items, int64 ``[N]`` both, each given by index or by identifier.

        Raises:
            DataError: as :meth:`user_indices`, an item that the model does not know (with its row), or not one a user.
        """
        users = self.user_indices(users)
        if is_text(items):
            items = self._items.find(items)
        else:
            items = np.require(as_index(items, "items", self.sizes["items"], error=DataError), requirements="W")
        same_length(DataError, users=users, items=items)
        return users, items

    def _check_fitted(self) -> None:
        if not self.sizes:
            raise DataError("model: expected one that is fitted or loaded; got a new one")

    def _checked(self, histories: Histories, name: str) -> Histories:
        if not isinstance(histories, Histories):
            raise DataError(f"{name}: expected Histories; got {type(histories).__name__}")
        self._check_fitted()
        return histories.checked(self.sizes["items"])

    def ndcg(self, data: Interactions, rows: np.ndarray, k: int = 10) -> float:
        """Mean NDCG@k of the users of some rows, whose positive items are to be found among all that the user has not
        seen: what ranking models stop early by. Items that the user has had before count for nothing."""
        rows = rows[data.labels[rows] == 1]
        users, place = np.unique(data.users[rows], return_inverse=True)
        relevant = Histories.from_pairs(len(users), place, data.items[rows]).without(self.seen.select(users))
        values = ranking_metrics(self.recommend(users, k).items, relevant, [k])[f"ndcg@{k}"]
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else float("nan")

    def auc(self, data: Interactions, rows: np.ndarray) -> float:
        """AUC of the labelled ones of some rows: what models of clicks stop early by."""
        rows = rows[data.labels[rows] != UNLABELLED]
        return auc(data.labels[rows], self.score(data.users[rows], data.items[rows]))

    def _scores_by_pairs(self, users: np.ndarray) -> torch.Tensor:
        """Scores of all items where a model's own way is that of pairs (:meth:`score`)."""
        items = self.sizes["items"]
        pairs = np.repeat(users, items), np.tile(np.arange(items), len(users))
        return torch.from_numpy(self.score(*pairs)).view(len(users), items).to(self.device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights and histories (safetensors), identifiers and settings (JSON); a model that is there already is
        replaced when all is written (:func:`~reasonrec_fast.files.atomic_write_folder`).

        Raises:
            DataError: a model that is not fitted; nothing is written.
        """
        self._check_fitted()
        save_folder(folder, type(self).__name__, _FORMAT, (_WEIGHTS, _IDENTIFIERS), self._write_files)

    def _write_files(self, folder: Path) -> dict[str, Any]:
        tensors = {f"model.{name}": value for name, value in self.state_dict().items()}
        kept = {"histories": self.histories} | ({} if self.seen is self.histories else {"had": self.seen})
        for name, histories in kept.items():
            tensors[f"{name}.indptr"] = torch.from_numpy(histories.indptr)
            tensors[f"{name}.items"] = torch.from_numpy(histories.items)
        tensors["learnt"] = torch.from_numpy(self.fitted_events.view(np.int64))
        write_tensors(folder / _WEIGHTS, tensors)
        write_json(folder / _IDENTIFIERS, {"users": list(self._users.ids), "items": list(self._items.ids)})
        self._write_more(folder)
        settings = {"config": asdict(self.config), "sizes": self.sizes, "like": self.like}
        return settings | {"events": self.training_digest}

    def _write_more(self, folder: Path) -> None:
        """Write what else the model needs."""

    @classmethod
    def from_pretrained(
        cls: type[Kind],
        folder: str | Path,
        *,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> Kind:
        """Read what :meth:`save_pretrained` wrote, on whatever device the model was then.

        Args:
            folder: the model, or a repository of the Hugging Face hub (``"user/repository"``).
            device: where it lives from now on; by default the GPU where there is one.
            revision, token: of the repository.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: the folder holds something else, or a device that is not there.
        """

        def read(folder: Path, stored: dict[str, Any]) -> Kind:
            return cls._load(folder, stored, device)

        return load_folder(folder, cls.__name__, _FORMAT, read, revision=revision, token=token)

    @classmethod
    def _load(cls: type[Kind], folder: Path, stored: dict[str, Any], device: torch.device | str | None) -> Kind:
        model = cls(cls.config_type(**stored["config"]), device=device)
        model._restore(folder, stored["sizes"])
        tensors = read_tensors(folder / _WEIGHTS)
        if "learnt" in tensors:
            model.fitted_events = tensors.pop("learnt").numpy().view(np.uint64)
        model.like, model.training_digest = stored.get("like"), stored.get("events", "")
        kept = [
            Histories(*(tensors.pop(f"{name}.{part}").numpy() for part in ("indptr", "items")))
            for name in ("histories", "had")
            if f"{name}.indptr" in tensors
        ]
        model.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items()})
        if (folder / _IDENTIFIERS).is_file():
            names = read_json(folder / _IDENTIFIERS)
            model._users, model._items = (Identifiers(names[what], what) for what in ("users", "items"))
            users, items = (model.sizes[what] for what in ("users", "items"))
            if len(model._items) and (len(model._users) < users or len(model._items) != items):
                raise ValueError(
                    f"{folder}: expected identifiers of {users} users and {items} items, as the weights have; got "
                    f"{len(model._users)} and {len(model._items)}"
                )
        return model.eval().set_histories(kept[0], seen=kept[-1] if len(kept) > 1 else None)


def _digest(data: Interactions, train: np.ndarray, validation: np.ndarray | None) -> str:
    """Of what decides a training: the events that are learnt, and those that tell when to stop."""
    parts = [train] if validation is None else [train, validation]
    return " ".join(data.take(rows).digest() for rows in parts)


class ClosedFormRecommender(ClassicalRecommender):
    """A model that is fitted at once: it has no epochs, so there is nothing to stop early, go on with or tell of."""

    @abstractmethod
    def fit_closed_form(self, data: Interactions, train: np.ndarray) -> None:
        """Build the model and fill it from rows ``train``."""

    def fit_rows(
        self,
        data: Interactions,
        train: np.ndarray,
        validation: np.ndarray | None,
        *,
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        self.fit_closed_form(data, train)
        self.set_histories_from(data, train)


class VectorRecommender(ClassicalRecommender):
    """A model whose score is the inner product of a user's and an item's vector; ``ops.topk`` retrieves."""

    @abstractmethod
    def encoded(self) -> tuple[Callable[[np.ndarray], torch.Tensor], torch.Tensor]:
        """What gives the vectors ``[B, D]`` of some users, and the items' ``[I, D]``; what all users share is computed
        here, once."""

    @property
    def _block(self) -> int:
        """All that are asked at a time: the best items are found without a score of every item in memory."""
        return _BATCH

    def scores(self, users: np.ndarray) -> torch.Tensor:
        of_users, items = self.encoded()
        return of_users(self.user_indices(users)) @ items.T

    @torch.inference_mode()
    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        users, items = self.pairs(users, items)
        of_users, vectors = self.encoded()
        found = torch.empty(len(users), device=self.device)
        user_indices, place = np.unique(users, return_inverse=True)
        starts = range(0, max(len(user_indices), 1), _BATCH)
        rows_of = torch.cat([of_users(user_indices[first : first + _BATCH]) for first in starts])
        for first in range(0, len(users), 1 << 18):
            rows = slice(first, first + (1 << 18))
            pairs = rows_of[on_device(place[rows], self.device)] * vectors[on_device(items[rows], self.device)]
            found[rows] = pairs.sum(-1).float()
        return found.cpu().numpy()

    def _retriever(self) -> Callable[[np.ndarray, int, Histories], tuple[torch.Tensor, torch.Tensor]]:
        of_users, items = self.encoded()

        def best(users: np.ndarray, k: int, exclude: Histories) -> tuple[torch.Tensor, torch.Tensor]:
            csr = on_device(exclude.indptr, self.device), on_device(exclude.items, self.device)
            found = ops.topk(of_users(users), items, k, exclude=csr)
            return found.values, found.indices

        return best
