"""Explanations without a language model: the baselines of every writer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.explanations import Explanation, ExplanationQuery
from reasonrec_fast.files import read_json, write_json
from reasonrec_fast.pretrained import PushToHub, load_folder, save_folder
from reasonrec_fast.settings import Count, check_settings, settings_from
from reasonrec_fast.training.progress import Progress

_FORMAT = 1
_TEXTS = "texts.json"

Kind = TypeVar("Kind", bound="TextWriter")


@dataclass(frozen=True)
class TextWriterConfig:
    """No settings."""


class TextWriter(PushToHub, ABC):
    """Base of the writers: texts that were learnt, kept as JSON.

    Args:
        config: settings.
        device: unused, as a writer has no tensors; part of the signature that all systems share.
    """

    config_type: ClassVar[type] = TextWriterConfig
    more_files: ClassVar[Collection[str]] = ()
    """Further files of a saved writer."""

    def __init__(self, config: Any = None, *, device: torch.device | str | None = None) -> None:
        self.config = self.config_type() if config is None else config
        if not isinstance(self.config, self.config_type):
            raise TypeError(f"config: expected a {self.config_type.__name__}; got {type(self.config).__name__}")
        self.texts: dict[str, Any] | None = None

    def fit(
        self: Kind,
        train: Sequence[Explanation],
        validation: Sequence[Explanation] = (),
        *,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Kind:
        """Learn from explanations; validation, checkpoint and progress are unused.

        Raises:
            DataError: no explanations.
        """
        if not len(train):
            raise DataError("train: expected at least one explanation; got none")
        self.texts = self._learned(train)
        self._prepare()
        return self

    def explain(self, queries: Sequence[ExplanationQuery]) -> list[str]:
        """A text for each pair.

        Raises:
            DataError: a writer that is not fitted or loaded.
            TypeError: an element that is no query (with its row).
        """
        if self.texts is None:
            raise DataError("model: expected one that is fitted or loaded; got a new one")
        for row, query in enumerate(queries):
            if not isinstance(query, ExplanationQuery):
                raise TypeError(f"queries: expected ExplanationQuery; got {type(query).__name__} in row {row}")
        return self._written(list(queries)) if len(queries) else []

    def _learned(self, train: Sequence[Explanation]) -> dict[str, Any]:
        """What the writer keeps of the training part."""
        return {}

    def _prepare(self) -> None:
        """Compute what is derived from the kept texts, after fitting and after loading."""

    @abstractmethod
    def _written(self, queries: Sequence[ExplanationQuery]) -> list[str]:
        """The texts for queries that were checked."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write texts and settings (JSON); a model that is there already is replaced as a whole.

        Raises:
            DataError: a writer that is not fitted; nothing is written.
        """
        if self.texts is None:
            raise DataError("model: expected one that is fitted or loaded; got a new one")
        save_folder(folder, type(self).__name__, _FORMAT, (_TEXTS, *self.more_files), self._save)

    def _save(self, folder: Path) -> Mapping[str, Any]:
        """Write all files but the settings, and return these."""
        write_json(folder / _TEXTS, self.texts)
        return {"config": asdict(self.config)}

    def _load(self, folder: Path) -> None:
        """Read further files of a saved writer, after :meth:`_prepare`."""

    @classmethod
    def from_pretrained(
        cls: type[Kind],
        folder: str | Path,
        *,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> Kind:
        """Read what :meth:`save_pretrained` wrote.

        Args:
            folder: the model, or a repository of the Hugging Face hub.
            device: of a language model, where the writer has one.
            revision, token: of the repository.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: the folder holds something else.
        """

        def read(folder: Path, stored: dict[str, Any]) -> Kind:
            model = cls(settings_from(cls.config_type, stored["config"], str(folder)), device=device)
            model.texts = read_json(folder / _TEXTS)
            model._prepare()
            model._load(folder)
            return model

        return load_folder(folder, cls.__name__, _FORMAT, read, revision=revision, token=token)


class ConstantText(TextWriter):
    """One text for every pair: the training explanation that is most like all the others (the largest inner product
    with the mean of all, in tf-idf). It scores well on metrics of word overlap, although it depends on no pair."""

    def _learned(self, train: Sequence[Explanation]) -> dict[str, Any]:
        texts = [line.explanation for line in train]
        vectors = _fitted(_vectorizer(), texts)
        mean = np.asarray(vectors.mean(0)).ravel()
        return {"text": texts[int(np.argmax(vectors @ mean))]}

    def _written(self, queries: Sequence[ExplanationQuery]) -> list[str]:
        assert self.texts is not None
        return [self.texts["text"]] * len(queries)


@dataclass(frozen=True)
class ProfileTextConfig:
    """Settings.

    Attributes:
        template: with ``{title}`` and ``{item_profile}``; braces within them stay as they are.
    """

    template: str = "The user would enjoy {title}. {item_profile}"

    def __post_init__(self) -> None:
        check_settings(self)
        for field in ("{title}", "{item_profile}"):
            if self.template.count(field) != 1:
                raise ValueError(f"template: expected {field} once; got {self.template!r}")


class ProfileText(TextWriter):
    """The item's title and profile in a template: what is known of the item, and nothing of the user."""

    config_type = ProfileTextConfig

    def _written(self, queries: Sequence[ExplanationQuery]) -> list[str]:
        before, middle = self.config.template.split("{item_profile}")
        values = [(query.title, query.item_profile) for query in queries]
        return [
            before.replace("{title}", title) + profile + middle.replace("{title}", title) for title, profile in values
        ]


@dataclass(frozen=True)
class NearestTextConfig:
    """Settings.

    Attributes:
        words: longest run of words that counts as a feature of a text.
    """

    words: Count = 2

    def __post_init__(self) -> None:
        check_settings(self)


class NearestText(TextWriter):
    """The explanation of the training pair whose title and profiles are nearest, by the cosine of their tf-idf; of
    pairs that are equally near, the first."""

    config_type = NearestTextConfig

    def _learned(self, train: Sequence[Explanation]) -> dict[str, Any]:
        return {
            "pairs": [_description(line.query) for line in train],
            "explanations": [line.explanation for line in train],
        }

    def _prepare(self) -> None:
        assert self.texts is not None
        self._vectorizer = _vectorizer(self.config.words)
        self._vectors = _fitted(self._vectorizer, self.texts["pairs"])

    def _written(self, queries: Sequence[ExplanationQuery]) -> list[str]:
        assert self.texts is not None
        similarities = self._vectorizer.transform([_description(query) for query in queries]) @ self._vectors.T
        return [self.texts["explanations"][int(row.toarray().argmax())] for row in similarities]


def _description(query: ExplanationQuery) -> str:
    return "\n".join((query.title, query.item_profile, query.user_profile))


def _vectorizer(words: int = 1) -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, words), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")


def _fitted(vectorizer: TfidfVectorizer, texts: Sequence[str]) -> csr_matrix:
    """The tf-idf of training texts, ``[N, words]``."""
    try:
        return vectorizer.fit_transform(texts)
    except ValueError as error:  # of texts without any word
        raise DataError(f"train: expected texts with words; got {texts[0]!r:.80} in row 0; {error}") from error
