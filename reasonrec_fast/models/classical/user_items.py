"""Users and items of a model: their indices, identifiers and histories."""

from __future__ import annotations

from abc import ABC
from typing import Any, TypeVar

import numpy as np
from torch import nn

from reasonrec_fast.arrays import as_index, same_length
from reasonrec_fast.data import DataError, Histories, Interactions
from reasonrec_fast.data.tables import TableLike, as_interactions
from reasonrec_fast.models.classical.identifiers import Identifiers, is_text
from reasonrec_fast.models.classical.matching import match_events, updated_histories

Module = TypeVar("Module", bound="UserItemModule")


class UserItemModule(nn.Module, ABC):
    """A torch module that knows users and items by index and by identifier, and the items of each user.

    Attributes:
        sizes: ``users``, ``items`` and whatever else decides the shapes of its parameters; empty until it is fitted.
        histories: what each user liked, oldest first; models that fold users in read it.
        seen: what each user has had, liked or not; recommendations leave it out.
        like: the rating from which on a training event was a like; None without ratings.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, int] = {}
        self.histories = self.seen = Histories.from_lists([])
        self.like: float | None = None
        self._users, self._items = Identifiers((), "users"), Identifiers((), "items")

    def check_served(self, users: np.ndarray) -> None:
        """Refuse users that the model cannot score: by default, those that ``histories`` does not have.

        Raises:
            DataError: such a user (with the row).
        """
        self.histories.known(users)

    @property
    def serves_new_users(self) -> bool:
        """Whether users who were not in training are scored by their histories (:meth:`set_histories_from_table`)."""
        return True

    def set_histories(self: Module, histories: Histories, *, seen: Histories | None = None) -> Module:
        """Set what each user liked and has had (see the class).

        Args:
            histories: liked items, oldest first.
            seen: items that recommendations leave out; the same by default.

        Raises:
            DataError: an item that the model does not know (with its row), or another number of users in ``seen``.
        """
        self.histories = self._checked(histories, "histories")
        self.seen = self.histories if seen is None else self._checked(seen, "seen")
        same_length(DataError, histories=self.histories.lengths, seen=self.seen.lengths)
        return self

    @property
    def known_users(self) -> Identifiers:
        """The identifiers of the model's users, by index: those of training, then those that
        :meth:`set_histories_from_table` added.

        Raises:
            DataError: a model that is not fitted, or one of an older version, which has no identifiers.
        """
        return self._known(self._users)

    @property
    def known_items(self) -> Identifiers:
        """The identifiers of the model's items, by index.

        Raises:
            DataError: as :attr:`known_users`.
        """
        return self._known(self._items)

    def _known(self, names: Identifiers) -> Identifiers:
        self._check_fitted()
        if not len(names):
            raise DataError("model: expected one that keeps identifiers; it was saved by an older version")
        return names

    def matched(self, data: Interactions | TableLike) -> Interactions:
        """A table in the model's own indices, matched by identifiers.

        Users that the model does not know get the next indices. Events of items that the model does not know are left
        out, and the log says how many.

        Args:
            data: events, or a DataFrame or a file of them.

        Raises:
            DataError: none of the items is known, likes from another rating on than in training, or a model of an
                older version, which has no identifiers.
        """
        items, users = self.known_items, self.known_users
        return match_events(as_interactions(data), users, items, self.like)

    def set_histories_from_table(self: Module, data: Interactions | TableLike) -> Module:
        """Replace the histories of a table's users by its events; other users keep theirs.

        Models that fold users in serve the table's new users by their identifiers from here on.

        Args:
            data: events, or a DataFrame or a file of them; matched by identifiers (:meth:`matched`).

        Raises:
            DataError: as :meth:`matched`.
        """
        data = as_interactions(data)
        matched = self.matched(data)
        liked, seen = updated_histories(self.histories, self.seen, data, matched)
        self.set_histories(liked, seen=seen)
        self._users = Identifiers(matched.user_ids, "users")
        return self

    def set_histories_from(self: Module, data: Interactions, rows: np.ndarray) -> Module:
        """Set the histories to the events of some rows (:meth:`set_histories`)."""
        return self.set_histories(Histories.of(data, rows), seen=Histories.seen(data, rows))

    def user_indices(self, users: Any) -> np.ndarray:
        """Indices of users, int64 ``[B]``, who are given by index (whole numbers) or by identifier (text).

        Raises:
            DataError: not a vector of indices of at least 0 or of known identifiers, a user that the model cannot score
                (with the row), or a model that is not fitted.
        """
        self._check_fitted()
        if is_text(users):
            indices = self._users.find(users)
        else:
            indices = np.require(as_index(users, "users", error=DataError), requirements="W")
        self.check_served(indices)
        return indices

    def pairs(self, users: Any, items: Any) -> tuple[np.ndarray, np.ndarray]:
        """Indices of users and items, int64 ``[N]`` both, each given by index or by identifier.

        Raises:
            DataError: as :meth:`user_indices`, an item that the model does not know (with its row), or different
                lengths.
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
