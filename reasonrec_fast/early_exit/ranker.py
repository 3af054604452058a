"""Scoring of (prefix, candidate) pairs by any decoder of transformers, with early exit and shared prefixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reasonrec_fast.devices import on_device, resolve_device
from reasonrec_fast.early_exit import storage
from reasonrec_fast.early_exit.engine import EarlyExitModel, Ranked
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.lm.decoder import Decoder, causal_parts
from reasonrec_fast.lm.inputs import (
    Text,
    TextInput,
    boundary,
    common_prefix,
    has_segments,
    joined,
    text_of,
)
from reasonrec_fast.lm.layout import TokenGroup
from reasonrec_fast.lm.prefix_cache import PrefixCache
from reasonrec_fast.ops.exit_confidence import Measure
from reasonrec_fast.uncertainty import Guarantee, Limit, choose_thresholds, guarantee_thresholds

Request = tuple[str | TextInput, str | TextInput]
"""What a user's candidates share, and one candidate: texts, token ids, or segments with embeddings among them."""

EncodedRequest = tuple[list[int] | Text, int]
"""A request's whole text, and how much of it its prefix is."""


def disagreement(scores: np.ndarray, full: np.ndarray) -> np.ndarray:
    """1 where a score's answer is another than that of full depth, ``[..., N]``.

    >>> disagreement(np.array([0.2, 0.9]), np.array([0.6, 0.7])).tolist()
    [1.0, 0.0]
    """
    return ((scores > 0.5) != (full > 0.5)).astype(np.float64)


class EarlyExitRanker:
    """Ranks candidates with a model that may stop before its last layer.

    Requests whose prefix is the same form a group: what all of its texts begin with is read once. Groups are packed
    without padding. The ranker is where its model is; scores are left there.

    Args:
        model: backbone and heads (see :meth:`from_model`).
        tokenizer: of the backbone; needed for texts alone.
        policy: when rows leave; None sends all through all layers. :meth:`calibrate` makes one.
        prefix_cache_bytes: of prefixes kept from call to call; 0 for none.
        max_tokens: of a batch; a group that is larger is divided.
        device: where to move the model; by default it stays where it is.

    Raises:
        ValueError: ``max_tokens`` is not positive, or a device that is not there.
    """

    def __init__(
        self,
        model: EarlyExitModel,
        tokenizer: Any = None,
        *,
        policy: ExitPolicy | None = None,
        prefix_cache_bytes: int = 0,
        max_tokens: int = 4096,
        device: torch.device | str | None = None,
    ) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1; got {max_tokens}")
        model = model.to(model.backbone.device if device is None else resolve_device(device))
        self.model, self.tokenizer, self.policy, self.max_tokens = model.eval(), tokenizer, policy, max_tokens
        self.cache = PrefixCache(prefix_cache_bytes) if prefix_cache_bytes else None

    @classmethod
    def from_model(
        cls,
        model: torch.nn.Module,
        tokenizer: Any,
        answers: tuple[str, str] = ("No", "Yes"),
        *,
        exits: Sequence[int] | None = None,
        **options: Any,
    ) -> EarlyExitRanker:
        """A ranker out of a causal model that was tuned to answer a question with one of two words.

        Every head begins as the rows of the LM head for the first tokens of the two answers, behind the final norm, so
        that full depth gives the model's own probabilities. Earlier exits are guesses until they are trained;
        calibration finds out how far they may be trusted.

        Args:
            model: a causal or image-text-to-text model of transformers, LoRA or not.
            tokenizer: of the model.
            answers: negative and positive, as they follow the prompt (mind a space in front).
            exits: layers with heads; None spreads six over the depth.
            options: of the ranker, ``device`` among them.

        Raises:
            TypeError: a model of another family, or one without an LM head.
            ValueError: both answers begin with the same token.
        """
        causal = causal_parts(model)
        tokens = [tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in answers]
        if tokens[0] == tokens[1]:
            raise ValueError(f"answers: expected words that begin with different tokens; got {answers}")
        ranker = EarlyExitModel(Decoder(model), exits, members=1)
        for head in ranker.heads:
            head.start_from(causal, tokens)
        return cls(ranker, tokenizer, **options)

    @property
    def device(self) -> torch.device:
        return self.model.backbone.device

    def to(self, device: torch.device | str) -> EarlyExitRanker:
        """Move heads and layers, which are the caller's own model's, to another device; cached prefixes are forgotten.

        Raises:
            ValueError: a device that is not there.
        """
        self.model.to(resolve_device(device))
        if self.cache is not None:
            self.cache.clear()
        return self

    def rank(self, requests: Sequence[Request], *, early_exit: bool = True) -> Ranked:
        """Probability of the positive answer for every request, in their order.

        Args:
            requests: (prefix, candidate) pairs.
            early_exit: False reads every layer.

        Raises:
            TypeError: token ids that are no whole numbers.
            ValueError: an empty request, texts without a tokenizer, ids that the backbone does not know, or a text
                that is too long.
        """
        return self.rank_encoded(self.encode(requests), early_exit=early_exit)

    def encode(self, requests: Sequence[Request]) -> list[EncodedRequest]:
        """Every request's token ids (or its text with embeddings), and how many of them its prefix has."""
        mixed = [place for place, pair in enumerate(requests) if has_segments(pair[0]) or has_segments(pair[1])]
        if mixed:
            requests = list(requests)
            for place in mixed:
                requests[place] = _in_one_form(requests[place])
        if not all(any(map(len, request)) for request in requests):
            raise ValueError("requests: expected (prefix, candidate) pairs with at least one token; got an empty one")
        if any(isinstance(start, str) != isinstance(candidate, str) for start, candidate in requests):
            raise ValueError("requests: expected two texts or two lists of token ids; got one of each")
        texts = [place for place, request in enumerate(requests) if isinstance(request[0], str)]
        if texts and self.tokenizer is None:
            raise ValueError("requests: expected token ids, since there is no tokenizer; got texts")
        encoded: dict[int, EncodedRequest] = {}
        for place in mixed:
            start, candidate = requests[place]
            if isinstance(start, Text) or isinstance(candidate, Text):
                encoded[place] = joined(start, candidate, "requests"), len(start)  # type: ignore[arg-type]
        if texts:
            pairs = [(str(requests[place][0]), str(requests[place][1])) for place in texts]
            prefixes = list(dict.fromkeys(prefix for prefix, _ in pairs))
            starts = dict(zip(prefixes, self.tokenizer(prefixes)["input_ids"], strict=True))
            wholes = self.tokenizer([prefix + candidate for prefix, candidate in pairs])["input_ids"]
            for place, (prefix, _), whole in zip(texts, pairs, wholes, strict=True):
                # Where the two texts meet a token may span both.
                encoded[place] = list(whole), common_prefix(starts[prefix], whole)
        for place, (start, candidate) in enumerate(requests):
            if place not in encoded:
                encoded[place] = _whole([*start, *candidate], place), len(start)
        most = self.model.backbone.vocabulary  # on a GPU a token beyond it would end all work of the process
        for place, (text, _) in encoded.items():
            ids = text if type(text) is list else text.ids.tolist()  # type: ignore[union-attr]
            if isinstance(text, Text):
                for _, segment in text.embeddings:
                    self.model.backbone.check_embeddings(segment, f"requests: request {place}")
            if min(ids) < 0 or max(ids) >= most:
                strange = next(value for value in ids if not 0 <= value < most)
                raise ValueError(f"requests: expected token ids in [0, {most}); got {strange} in request {place}")
        return [encoded[place] for place in range(len(requests))]

    def rank_encoded(self, encoded: Sequence[EncodedRequest], *, early_exit: bool = True) -> Ranked:
        """What :meth:`rank` does, of what :meth:`encode` made."""
        probability = torch.empty(len(encoded), device=self.device)
        depth = torch.empty(len(encoded), dtype=torch.int64, device=self.device)
        for groups, rows in self._batches(encoded):
            found = self.model.rank(groups, policy=self.policy if early_exit else None, cache=self.cache)
            places = on_device(np.array(rows), self.device)
            probability[places], depth[places] = found.probability, found.depth
        return Ranked(probability, depth)

    def calibrate(
        self,
        requests: Sequence[Request],
        *,
        alpha: float,
        delta: float = 0.1,
        loss: Callable[[np.ndarray, np.ndarray], np.ndarray] = disagreement,
        users: np.ndarray | None = None,
        measure: Measure = "ratio",
        trend: bool = False,
    ) -> Guarantee:
        """Choose the thresholds with a promise: the mean loss against full depth is at most ``alpha``, with
        probability ``1 - delta`` over calibration sets (Learn then Test).

        Args:
            requests: drawn as those to come will be.
            alpha, delta: the promise.
            loss: from scores ``[E, N]`` of the exits and ``[N]`` of full depth to values in [0, 1], ``[E, N]``.
            users: who asked, ``[N]``, where requests of a user go together: the promise is then of the mean over users.
            measure, trend: of the policy.
        """
        scores, confidence = self._all_exits(requests, measure)
        found = guarantee_thresholds(
            loss(scores, scores[-1]), confidence, self.model.exits, alpha=alpha, delta=delta, trend=trend, groups=users
        )
        self.policy = ExitPolicy((found.thresholds,), measure, trend)
        return found

    def calibrate_within(
        self, requests: Sequence[Request], limits: Sequence[Limit], *, measure: Measure = "ratio", trend: bool = False
    ) -> ExitPolicy:
        """Choose the thresholds with the least depth that keep metrics (AUC, for instance) within limits on the
        requests given; without a promise for others."""
        scores, confidence = self._all_exits(requests, measure)
        thresholds = choose_thresholds(scores, confidence, self.model.exits, limits, trend=trend)
        self.policy = ExitPolicy((thresholds,), measure, trend)
        return self.policy

    def save_pretrained(self, folder: str | Path) -> None:
        """Write heads (safetensors), policy and bounds; the causal model and its tokenizer have a
        ``save_pretrained`` of their own."""
        storage.save(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        model: torch.nn.Module,
        tokenizer: Any = None,
        *,
        device: torch.device | str | None = None,
    ) -> EarlyExitRanker:
        """Read what :meth:`save_pretrained` wrote, around the causal model that it belongs to.

        Args:
            folder: of :meth:`save_pretrained`.
            model: the causal model, LoRA or not.
            tokenizer: of the model.
            device: where to move the model; by default it stays where it is. Any device may have saved the heads.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: the folder holds something else, belongs to a model of another shape, or a device that is not
                there.
        """
        return storage.load(cls, Path(folder), model, tokenizer, device)

    @torch.inference_mode()
    def _all_exits(self, requests: Sequence[Request], measure: Measure) -> tuple[np.ndarray, np.ndarray]:
        """Scores and confidence at every exit, ``[E, N]``."""
        encoded = self.encode(requests)
        found = np.empty((2, len(self.model.exits), len(encoded)))
        for groups, rows in self._batches(encoded):
            exits = self.model.all_exits(groups, measure=measure)
            # One copy to the host a batch.
            both = torch.stack([torch.stack([s.positive_probability, s.confidence]) for s in exits], 1)
            found[:, :, rows] = both.cpu().numpy()
        return found[0], found[1]

    def _batches(self, encoded: Sequence[EncodedRequest]) -> Iterator[tuple[list[TokenGroup], list[int]]]:
        """Groups of at most ``max_tokens`` tokens together (one row at least), and the requests that their rows are."""
        groups: list[TokenGroup] = []
        rows: list[int] = []
        filled = 0
        for prefix, places in self._grouped(encoded):
            for place in places:
                suffix = encoded[place][0][len(prefix) :]
                begins = not groups or groups[-1][0] is not prefix
                size = len(suffix) + (len(prefix) if begins else 0)
                if rows and filled + size > self.max_tokens:
                    yield groups, rows
                    groups, rows, filled, begins = [], [], 0, True
                    size = len(suffix) + len(prefix)
                if begins:
                    groups.append((prefix, []))
                groups[-1][1].append(suffix)  # type: ignore[attr-defined]
                rows.append(place)
                filled += size
        if rows:
            yield groups, rows

    def _grouped(self, encoded: Sequence[EncodedRequest]) -> Iterator[tuple[Any, list[int]]]:
        """Prefixes, and the requests that begin with each."""
        by_prefix: dict[tuple[int, ...] | Text, list[int]] = {}
        for place, (ids, start) in enumerate(encoded):
            # The last token is asked, so it is never shared.
            prefix: Any = ids[: boundary(ids, min(start, len(ids) - 1))]
            by_prefix.setdefault(prefix if isinstance(prefix, Text) else tuple(prefix), []).append(place)
        for prefix, places in by_prefix.items():
            ids, shared = encoded[places[0]][0], len(prefix)
            if self.cache is None and len(places) > 1:
                # Candidates may begin alike. A cached prefix ends where its text does, to be found again.
                shared = min(min(common_prefix(ids, encoded[place][0]), len(encoded[place][0]) - 1) for place in places)
            yield ids[: boundary(ids, shared)], places


def _whole(ids: list[Any], request: int) -> list[int]:
    """Token ids, of any type of whole numbers.

    Raises:
        TypeError: 1.5 is none.
    """
    try:
        return list(map(index, ids))
    except TypeError:
        strange = next(value for value in ids if not _is_whole(value))
        raise TypeError(f"requests: expected token ids, whole numbers; got {strange!r} in request {request}") from None


def _is_whole(value: Any) -> bool:
    try:
        index(value)
    except TypeError:
        return False
    return True


def _in_one_form(request: Request) -> Request:
    """A request whose segments, if it is given in any, are joined to texts."""
    first: Any
    second: Any
    first, second = (text_of(text, "requests") if has_segments(text) else text for text in request)  # type: ignore[arg-type]
    return first, second
