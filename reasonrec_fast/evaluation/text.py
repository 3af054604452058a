"""Metrics of generated text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from reasonrec_fast.arrays import as_count, as_numbers, same_length


def text_metrics(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Agreement of texts with one reference each, and their diversity.

    Args:
        texts, references: one of each per request.

    Returns:
        ``bleu`` (corpus BLEU-4, 0 to 100, sacrebleu's tokens), ``rouge1``, ``rouge2`` and ``rougeL`` (mean F-measures,
        0 to 100, with stemming), ``distinct1`` and ``distinct2``.

    Raises:
        ValueError: another number of references than of texts, no texts, or one that is not text (with its row).
        ImportError: the extra ``text`` is not installed.

    >>> metrics = text_metrics(["a warm quiet room to read"], ["a warm quiet room to read"])
    >>> round(metrics["bleu"]), round(metrics["rougeL"]), metrics["distinct1"]
    (100, 100, 1.0)
    """
    texts, references = _pairs(texts, references)
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu import corpus_bleu
    except ImportError as missing:
        raise ImportError(
            "text metrics need sacrebleu and rouge-score: pip install 'reasonrec-fast[text]'"
        ) from missing
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    rouge = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {
        "bleu": float(corpus_bleu(list(texts), [list(references)]).score),
        **{kind: 100 * float(np.mean([scores[kind].fmeasure for scores in rouge])) for kind in kinds},
        "distinct1": distinct(texts, 1),
        "distinct2": distinct(texts, 2),
    }


def distinct(texts: Iterable[str], n: int) -> float:
    """Distinct-n: distinct n-grams over all n-grams of all texts (Li et al. 2016); 0 if there are none.

    Args:
        texts: the generated texts.
        n: words per n-gram, at least 1.

    Raises:
        ValueError: a single string instead of several texts, one that is not text (with its row), or ``n`` below 1.

    >>> distinct(["the cat saw the cat"], 1)
    0.6
    """
    texts, n = _as_texts(texts, "texts"), as_count(n, "n", 1)
    grams = [
        tuple(words[start : start + n])
        for words in (text.lower().split() for text in texts)
        for start in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0


def feature_coverage(texts: Iterable[str], features: Iterable[str]) -> float:
    """Feature coverage ratio: share of the distinct features that occur in some text (FCR, Li et al. 2020), ignoring
    case.

    Args:
        texts: the generated texts.
        features: words or phrases.

    Raises:
        ValueError: no features, an empty one, or one that is not text (with its row).

    >>> feature_coverage(["Great coffee"], ["coffee", "cake"])
    0.5
    """
    names = {feature.lower() for feature in _as_texts(features, "features")}
    if not names or "" in names:
        raise ValueError(
            f"features: expected at least one, and words in each; got {'an empty one' if names else 'none'}"
        )
    joined = "\n".join(_as_texts(texts, "texts")).lower()
    return sum(feature in joined for feature in names) / len(names)


def reference_ranks(
    texts: Sequence[str], references: Sequence[str], encode: Callable[[Sequence[str]], Any]
) -> np.ndarray:
    """Rank of each text's own reference among all references by cosine similarity, from 1, float64 ``[N]``; a tie
    counts half a rank. The mean of ``1 / ranks`` is the reference-retrieval MRR, which is low for generic texts.

    Args:
        texts, references: one of each per request.
        encode: a sentence encoder: texts to vectors ``[N, D]``, such as ``SentenceTransformer.encode``.

    Raises:
        ValueError: as :func:`text_metrics`, or an encoder that returns no finite vector per text (with the row).

    >>> def letters(texts):
    ...     return np.array([[text.count("a"), text.count("b")] for text in texts])
    >>> reference_ranks(["bb", "b"], ["ab", "b"], letters).tolist()
    [2.0, 1.0]
    """
    texts, references = _pairs(texts, references)
    vectors = [as_numbers(encode(list(group)), "encode", dims=2) for group in (texts, references)]
    same_length(texts=texts, encode=vectors[0])
    same_length(references=references, encode=vectors[1])
    texts_, references_ = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in vectors)
    similarity = texts_ @ references_.T
    own = np.diag(similarity)[:, None]
    return 1 + (similarity > own).sum(1) + 0.5 * ((similarity == own).sum(1) - 1)


def without_names(texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Texts without the name of what each speaks of: ``it`` stands in its place, whatever the case of its letters.

    A text that only repeats a name finds its reference by it; what else it says shows in these.

    Args:
        texts, names: one of each per request; an empty name leaves its text as it is.

    Raises:
        ValueError: as :func:`text_metrics`.

    >>> without_names(["Leaf is calm, and leaf has tea."], ["Leaf"])
    ['it is calm, and it has tea.']
    """
    texts, names = _as_texts(texts, "texts"), _as_texts(names, "names")
    same_length(texts=texts, names=names)
    return [
        re.sub(rf"(?<!\w){re.escape(name.strip())}(?!\w)", "it", text, flags=re.IGNORECASE) if name.strip() else text
        for text, name in zip(texts, names, strict=True)
    ]


def _pairs(texts: Iterable[str], references: Iterable[str]) -> tuple[list[str], list[str]]:
    texts, references = _as_texts(texts, "texts"), _as_texts(references, "references")
    if len(texts) != len(references) or not texts:
        raise ValueError(f"references: expected {len(texts)} (at least 1), one a text; got {len(references)}")
    return texts, references


def _as_texts(values: Iterable[str], name: str) -> list[str]:
    if isinstance(values, str):
        raise ValueError(f"{name}: expected several texts; got one, {values!r}")
    texts = list(values)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}: expected text; got {text!r} in row {row}")
    return texts
