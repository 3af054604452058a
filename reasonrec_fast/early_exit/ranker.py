"""Scoring of (prefix, candidate) pairs by any decoder of transformers, with early exit and shared prefixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reasonrec_fast.devices import on_device, resolve_device
from reasonrec_fast.early_exit import storage
from reasonrec_fast.early_exit.batching import batches_of, num_tokens, pieces_of
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
from reasonrec_fast.lm.layout import TokenGroup, text_groups, within
from reasonrec_fast.lm.prefix_cache import PrefixCache
from reasonrec_fast.micro_batcher import SharedBatcher, has_host_library
from reasonrec_fast.ops.exit_confidence import Measure, exit_confidence
from reasonrec_fast.pretrained import PushToHub
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


@dataclass(frozen=True)
class GroupInputs:
    """What goes with the ``R`` rows of token groups.

    Attributes:
        features: standardised, float32 ``[R, F]``; None for heads that read none.
        offset: logits of depth 0, float32 ``[R]``, for heads that correct them; else None.
        strata: row of the policy's thresholds, int64 ``[R]``; None: the first.
    """

    features: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    strata: torch.Tensor | None = None

    def of(self, rows: slice | np.ndarray) -> GroupInputs:
        """Of some of the rows."""
        at = torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows
        return GroupInputs(
            *(None if values is None else values[at] for values in (self.features, self.offset, self.strata))
        )

    @classmethod
    def joined(cls, parts: Sequence[GroupInputs]) -> GroupInputs:
        """One after the other; all have the same of the three."""
        columns = zip(*((part.features, part.offset, part.strata) for part in parts), strict=True)
        return cls(*(None if column[0] is None else torch.cat(column) for column in columns))


@dataclass(frozen=True)
class _Piece:
    """A group of some caller's, that goes into one batch."""

    group: TokenGroup
    inputs: GroupInputs
    early_exit: bool


class EarlyExitRanker(PushToHub):
    """Ranks candidates with a model that may stop before its last layer, or before its first.

    Requests whose prefix is the same form a group: what all of its texts begin with is read once. Groups are packed
    without padding. The ranker is where its model is; scores are left there.

    Where the heads correct a logit (``EarlyExitModel(..., offset=True)``) that logit comes with every request, and the
    exits begin at depth 0: who leaves there is never tokenised.

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
        self._batcher: SharedBatcher[_Piece, Ranked] = SharedBatcher(
            self._rank_pieces, max_size=max_tokens, max_wait_ms=0.0, capacity=1 << 62
        )

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
        ranker = EarlyExitModel(Decoder(model), exits, ensemble_size=1)
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

    def rank(
        self,
        requests: Sequence[Request] | Callable[[np.ndarray], Sequence[Request]],
        *,
        features: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
        shallow: torch.Tensor | None = None,
        confidence: np.ndarray | None = None,
        strata: np.ndarray | None = None,
        early_exit: bool = True,
    ) -> Ranked:
        """Probability of the positive answer for every request, in their order.

        Args:
            requests: (prefix, candidate) pairs; or, with an offset, what makes those of the rows that it is given
                (ascending, int64): it is asked for the requests that go on alone.
            features: standardised, float32 ``[R, F]``, for heads that read some.
            offset: logits of depth 0, float32 ``[R]``, for heads that correct them.
            shallow: logits of who leaves at depth 0, float32 ``[R]``; by default the offset.
            confidence: at depth 0, ``[R]``, larger is surer: minus the predicted gain of going on, for instance
                (:class:`~reasonrec_fast.early_exit.depth_zero.DepthZero` makes both). By default that of ``shallow``,
                by the policy's measure.
            strata: row of the policy's thresholds, int64 ``[R]``; by default the first.
            early_exit: False reads every layer.

        Raises:
            TypeError: token ids that are no whole numbers.
            ValueError: an empty request, texts without a tokenizer, ids that the backbone does not know, a text that is
                too long, or an offset that is missing or not wanted.
        """
        if offset is None and callable(requests):
            raise ValueError("requests: expected a sequence, as only an offset tells which go on; got a function")
        if self.model.offset != (offset is not None):
            raise ValueError(f"offset: expected {'one a request' if self.model.offset else 'None'}; got {offset}")
        if offset is None and (shallow is not None or confidence is not None):
            raise ValueError("shallow, confidence: expected None for a model without depth 0; got one of them")
        if offset is not None and not callable(requests) and len(requests) != len(offset):
            raise ValueError(f"offset: expected [{len(requests)}], one a request; got [{len(offset)}]")
        size = len(requests) if offset is None else len(offset)  # type: ignore[arg-type]
        on, shallow = np.arange(size), offset if shallow is None else shallow
        if shallow is not None and early_exit and self.policy is not None:
            self.policy.check_exits(len(self.model.depths))
            if confidence is None:
                confidence = logit_confidence(shallow, self.policy.measure)
            on = np.flatnonzero(~self.policy.leaves_at_zero(confidence, strata))
        probability = torch.empty(size, device=self.device)
        depth = torch.zeros(size, dtype=torch.int64, device=self.device)
        if shallow is not None:
            probability.copy_(torch.sigmoid(shallow.float()))
        if len(on):
            chosen = requests(on) if callable(requests) else [requests[row] for row in on.tolist()]
            inputs = GroupInputs(features, offset, None if strata is None else torch.from_numpy(np.asarray(strata)))
            ranked = self.rank_encoded(self.encode(chosen), inputs=inputs.of(on), early_exit=early_exit)
            rows = on_device(on, self.device)
            probability[rows], depth[rows] = ranked.probability, ranked.depth
        return Ranked(probability, depth)

    def rank_groups(
        self,
        groups: Sequence[TokenGroup],
        inputs: GroupInputs | None = None,
        *,
        early_exit: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> Ranked:
        """Scores of token groups that all go on from depth 0, on the CPU. Any number of threads may call it: they share
        batches.

        Args:
            groups: prefixes and suffixes, ``R`` rows.
            inputs: what goes with the rows.
            early_exit: False reads every layer.
            progress: is told how many rows were just scored.

        Raises:
            ValueError: a group that the model cannot read, or inputs that are missing, not wanted, or of another number
                of rows.
        """
        inputs, groups = inputs or GroupInputs(), list(groups)
        self._check_groups(groups, inputs)
        if inputs.strata is None:  # a batch may hold rows of other callers, which have some
            inputs = replace(
                inputs, strata=torch.zeros(sum(len(suffixes) for _, suffixes in groups), dtype=torch.int64)
            )
        pieces, row = [], 0
        for group in pieces_of(groups, self.max_tokens):
            pieces.append(_Piece(group, inputs.of(slice(row, row + len(group[1]))), early_exit))
            row += len(group[1])
        probability, depth = torch.empty(row), torch.empty(row, dtype=torch.int64)
        row = 0
        for ranked in self._shared(pieces):
            size = len(ranked.depth)
            probability[row : row + size], depth[row : row + size] = ranked.probability, ranked.depth
            row += size
            if progress is not None:
                progress(size)
        return Ranked(probability, depth)

    def _check_groups(self, groups: Sequence[TokenGroup], inputs: GroupInputs) -> None:
        """Refuse what would fail, or silently change, the batch that other callers share."""
        backbone, rows = self.model.backbone, sum(len(suffixes) for _, suffixes in groups)
        for number, (prefix, suffixes) in enumerate(text_groups(groups)):
            if not suffixes or not all(map(len, suffixes)):
                raise ValueError(f"groups: expected suffixes of at least one token; got none in group {number}")
            backbone.check_length(len(prefix) + max(map(len, suffixes)), "groups")
            for text in (prefix, *suffixes):
                _check_text(text, backbone, "groups", f"group {number}")
        wanted = {"features": self.model.heads[0].units is not None, "offset": self.model.offset}
        for name, values in vars(inputs).items():
            if name in wanted and (values is not None) != wanted[name]:
                raise ValueError(f"inputs: expected {name} {'of all rows' if wanted[name] else 'None'}; got {values}")
            if values is not None and len(values) != rows:
                raise ValueError(f"inputs: expected {rows} {name}, one a row; got {len(values)}")

    def _shared(self, pieces: list[_Piece]) -> Iterator[Ranked]:
        """The scores of every piece, in order, from batches that concurrent callers share."""
        sizes = [num_tokens(piece.group) for piece in pieces]
        if not has_host_library():
            for part in within(sizes, self.max_tokens):
                yield from self._rank_pieces([pieces[position] for position in part])
            return
        futures: list[Future[Ranked]] = []
        with self._batcher.use() as batcher:
            try:
                futures = batcher.submit_all(pieces, sizes)
                for future in futures:
                    yield future.result()
            finally:  # a caller who gives up leaves no work behind
                for future in futures:
                    future.cancel()

    def _rank_pieces(self, pieces: list[_Piece]) -> list[Ranked]:
        """Those that may leave early and those that may not are batches of their own."""
        results: dict[int, Ranked] = {}
        for early_exit in (True, False):
            positions = [position for position, piece in enumerate(pieces) if piece.early_exit == early_exit]
            if positions:
                inputs = GroupInputs.joined([pieces[position].inputs for position in positions])
                groups = [pieces[position].group for position in positions]
                ranked = self._rank_batch(groups, inputs, early_exit).cpu()  # in one copy
                results.update(zip(positions, split(ranked, [len(suffixes) for _, suffixes in groups]), strict=True))
        return [results[position] for position in range(len(pieces))]

    def _rank_batch(self, groups: Sequence[TokenGroup], inputs: GroupInputs, early_exit: bool) -> Ranked:
        return self.model.rank(
            groups,
            inputs.features,
            self.policy if early_exit else None,
            inputs.strata,
            self.cache,
            offset=inputs.offset,
        )

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
        for place, (text, _) in encoded.items():
            _check_text(text, self.model.backbone, "requests", f"request {place}")
        return [encoded[place] for place in range(len(requests))]

    def rank_encoded(
        self,
        encoded: Sequence[EncodedRequest],
        *,
        inputs: GroupInputs | None = None,
        early_exit: bool = True,
    ) -> Ranked:
        """What :meth:`rank` does of requests that all go on from depth 0, as :meth:`encode` made them."""
        inputs = inputs or GroupInputs()
        probability = torch.empty(len(encoded), device=self.device)
        depth = torch.empty(len(encoded), dtype=torch.int64, device=self.device)
        for groups, rows in self._batches(encoded):
            ranked = self._rank_batch(groups, inputs.of(rows), early_exit)
            positions = on_device(rows, self.device)
            probability[positions], depth[positions] = ranked.probability, ranked.depth
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
        features: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
        shallow: torch.Tensor | None = None,
        confidence: np.ndarray | None = None,
    ) -> Guarantee:
        """Choose the thresholds with a promise: the mean loss against full depth is at most ``alpha``, with
        probability ``1 - delta`` over calibration sets (Learn then Test).

        Args:
            requests: drawn as those to come will be.
            alpha, delta: the promise.
            loss: from scores ``[E, N]`` of the exits and ``[N]`` of full depth to values in [0, 1], ``[E, N]``.
            users: who asked, ``[N]``, where requests of a user go together: the promise is then of the mean over users.
            measure, trend: of the policy.
            features, offset, shallow, confidence: as :meth:`rank` will get them; what they come from must have been
                learnt from other requests.
        """
        scores, sureness = self._all_exits(requests, measure, GroupInputs(features, offset), shallow, confidence)
        guarantee = guarantee_thresholds(
            loss(scores, scores[-1]), sureness, self.model.depths, alpha=alpha, delta=delta, trend=trend, groups=users,
            heads_from=int(self.model.offset),
        )  # fmt: skip
        self.policy = ExitPolicy((guarantee.thresholds,), measure, trend)
        return guarantee

    def calibrate_within(
        self,
        requests: Sequence[Request],
        limits: Sequence[Limit],
        *,
        measure: Measure = "ratio",
        trend: bool = False,
        features: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
        shallow: torch.Tensor | None = None,
        confidence: np.ndarray | None = None,
    ) -> ExitPolicy:
        """Choose the thresholds with the least depth that keep metrics (AUC, for instance) within limits on the
        requests given; without a promise for others. The arguments are those of :meth:`calibrate`."""
        scores, sureness = self._all_exits(requests, measure, GroupInputs(features, offset), shallow, confidence)
        thresholds = choose_thresholds(
            scores, sureness, self.model.depths, limits, trend=trend, heads_from=int(self.model.offset)
        )
        self.policy = ExitPolicy((thresholds,), measure, trend)
        return self.policy

    def save_pretrained(self, folder: str | Path) -> None:
        """Write heads (safetensors), policy and bounds; the causal model and its tokenizer have a
        ``save_pretrained`` of their own."""
        cached = 0 if self.cache is None else self.cache.max_bytes
        storage.save(folder, self.model, self.policy, max_tokens=self.max_tokens, prefix_cache_bytes=cached)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        model: torch.nn.Module,
        tokenizer: Any = None,
        *,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> EarlyExitRanker:
        """Read what :meth:`save_pretrained` wrote, around the causal model that it belongs to.

        Args:
            folder: of :meth:`save_pretrained`, or a repository of the Hugging Face hub.
            model: the causal model, LoRA or not.
            tokenizer: of the model.
            device: where to move the model; by default it stays where it is. Any device may have saved the heads.
            revision, token: of the repository.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: the folder holds something else, belongs to a model of another shape, or a device that is not
                there.
        """
        heads, policy, bounds = storage.load(folder, Decoder(model), revision=revision, token=token)
        return cls(heads, tokenizer, policy=policy, device=device, **bounds)  # type: ignore[arg-type]

    def exit_logits(
        self,
        groups: Sequence[TokenGroup],
        inputs: GroupInputs | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Logits of yes of every ensemble member at every head, float64 ``[E, R, K]``, at the present temperatures.

        Args:
            groups: prefixes and suffixes, ``R`` rows.
            inputs: what goes with the rows.
            progress: is told how many rows were just scored.
        """
        inputs = inputs or GroupInputs()
        heads = self.model.heads
        logits = np.empty((len(heads), sum(len(suffixes) for _, suffixes in groups), len(heads[0].weight)))
        for batch, rows in batches_of(groups, self.max_tokens):
            statistics = self._exit_statistics(batch, inputs.of(rows), targets=torch.ones(len(rows), dtype=torch.int64))
            yes = torch.stack([exit.target_logprob for exit in statistics]).cpu().double().numpy()  # one copy a batch
            logits[:, rows] = yes - np.log(-np.expm1(np.minimum(yes, -1e-12)))
            if progress is not None:
                progress(len(rows))
        return logits

    def _all_exits(
        self,
        requests: Sequence[Request],
        measure: Measure,
        inputs: GroupInputs,
        shallow: torch.Tensor | None,
        confidence: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and confidence at every exit, depth 0 included, ``[E, N]``."""
        encoded = self.encode(requests)
        both = np.empty((2, len(self.model.depths), len(encoded)))
        if inputs.offset is not None:
            shallow = inputs.offset if shallow is None else shallow
            own = logit_confidence(shallow, measure) if confidence is None else confidence
            both[0, 0], both[1, 0] = torch.sigmoid(shallow.float()).cpu().numpy(), own
        behind = len(self.model.depths) - len(self.model.exits)
        for groups, rows in self._batches(encoded):
            exits = self._exit_statistics(groups, inputs.of(rows), measure=measure)
            # One copy to the host a batch.
            stacked = torch.stack([torch.stack([s.positive_probability, s.confidence]) for s in exits], 1)
            both[:, behind:, rows] = stacked.cpu().numpy()
        return both[0], both[1]

    @torch.inference_mode()
    def _exit_statistics(self, groups: Sequence[TokenGroup], inputs: GroupInputs, **options: Any) -> Any:
        return self.model.all_exits(groups, inputs.features, offset=inputs.offset, **options)

    def _batches(self, encoded: Sequence[EncodedRequest]) -> Iterator[tuple[list[TokenGroup], np.ndarray]]:
        """Groups of at most ``max_tokens`` tokens together (one row at least), and the requests that their rows are."""
        groups: list[TokenGroup] = []
        order: list[int] = []
        for prefix, positions in self._grouped(encoded):
            groups.append((prefix, [encoded[position][0][len(prefix) :] for position in positions]))
            order += positions
        requests = np.array(order, dtype=np.int64)
        for batch, rows in batches_of(groups, self.max_tokens):
            yield batch, requests[rows]

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


def split(ranked: Ranked, sizes: Sequence[int]) -> list[Ranked]:
    """Scores of parts that lie one after the other."""
    parts = zip(ranked.probability.split(list(sizes)), ranked.depth.split(list(sizes)), strict=True)
    return [Ranked(probability, depth) for probability, depth in parts]


def logit_confidence(logits: torch.Tensor | np.ndarray, measure: Measure) -> np.ndarray:
    """The confidence that ``exit_confidence`` gives the logits of yes, in the same shape, float64.

    >>> logit_confidence(np.array([0.0, 2.0]), "ratio").tolist()
    [0.0, 2.0]
    """
    values = torch.as_tensor(logits).detach().cpu().double()
    heads = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    return exit_confidence(values.reshape(-1, 1), heads, measure=measure).confidence.reshape(values.shape).numpy()


def _check_text(text: Any, backbone: Decoder, argument: str, owner: str) -> None:
    """Refuse token ids and vectors that are not the backbone's; on a GPU such an id would end all work of the process.

    Raises:
        ValueError: which, and whose.
    """
    ids, most = text, backbone.vocabulary
    if isinstance(text, Text):
        ids = text.ids.tolist()
        for _, segment in text.embeddings:
            backbone.check_embeddings(segment, f"{argument}: {owner}")
    if len(ids) and (min(ids) < 0 or max(ids) >= most):
        strange = next(value for value in ids if not 0 <= value < most)
        raise ValueError(f"{argument}: expected token ids in [0, {most}); got {strange} in {owner}")


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
