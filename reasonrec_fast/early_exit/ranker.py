"""Scoring of (prefix, candidate) pairs by any decoder of transformers, with early exit and shared prefixes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reasonrec_fast.arrays import as_count, as_keys, same_length
from reasonrec_fast.devices import on_device, resolve_device
from reasonrec_fast.early_exit import storage
from reasonrec_fast.early_exit.answers import Answers, Reading
from reasonrec_fast.early_exit.batching import num_tokens, pieces_of
from reasonrec_fast.early_exit.checks import check_leaving, check_strata, checked_inputs
from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.early_exit.heads import default_measure
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.early_exit.requests import (
    EncodedRequest,
    GroupInputs,
    Request,
    check_groups,
    encode_requests,
    listed,
    request_batches,
)
from reasonrec_fast.early_exit.scorer import ExitScorer, disagreement
from reasonrec_fast.early_exit.scores import RowScores, checked_levels, logit_confidence, put_logits
from reasonrec_fast.lm.chat import PairPrompt
from reasonrec_fast.lm.decoder import Decoder, causal_parts
from reasonrec_fast.lm.layout import TokenGroup, text_groups, within
from reasonrec_fast.lm.output import OutputHead
from reasonrec_fast.lm.prefix_cache import PrefixCache
from reasonrec_fast.micro_batcher import SharedBatcher, has_host_library
from reasonrec_fast.ops.exit_confidence import Measure
from reasonrec_fast.pretrained import PushToHub
from reasonrec_fast.uncertainty import Guarantee, Limit, choose_thresholds, guarantee_thresholds

Prompt = Callable[[str, str], Request]
"""Makes a request of a query and a document."""


@dataclass(frozen=True)
class _Piece:
    """A group of some caller's, that goes into one batch."""

    group: TokenGroup
    inputs: GroupInputs
    early_exit: bool


class EarlyExitRanker(PushToHub):
    """Scores and ranks candidates with a model that may stop before its last layer, or before its first.

    Requests whose prefix is the same form a group: what all of its texts begin with is read once. Groups are packed
    without padding. The ranker is where its model is; scores are left there.

    Where the heads correct a logit (``EarlyExitModel(..., offset=True)``) that logit comes with every request, and the
    exits begin at depth 0: who leaves there is never tokenised.

    Answers whose tokens all count (``Answers.reading`` is ``"sum"`` or ``"mean"``) are scored exactly at full depth;
    the heads of earlier exits choose among the same answers, and must be trained before calibration lets anyone leave
    there.

    Args:
        model: backbone and heads (see :meth:`from_model`).
        tokenizer: of the backbone; needed for texts alone.
        answers: what the heads choose from; None where nothing but labels is known of them.
        output: the final norm and LM head, for answers that are scored by all of their tokens.
        prompt: makes a request of a query and a document, for :meth:`rank` and pairs of texts alone; such as
            :class:`~reasonrec_fast.lm.chat.PairPrompt` and :class:`~reasonrec_fast.lm.chat.ChatPrompt`. By default the
            document follows the query as it stands.
        policy: when rows leave; None sends all through all layers. :meth:`calibrate` makes one.
        prefix_cache_bytes: of prefixes kept from call to call; 0 for none.
        max_tokens: of a batch; a group that is larger is divided.
        device: where to move the model; by default it stays where it is.

    Raises:
        ValueError: ``max_tokens`` is not positive, answers that do not fit the heads, or a device that is not there.
    """

    def __init__(
        self,
        model: EarlyExitModel,
        tokenizer: Any = None,
        *,
        answers: Answers | None = None,
        output: OutputHead | None = None,
        prompt: Prompt | None = None,
        policy: ExitPolicy | None = None,
        prefix_cache_bytes: int = 0,
        max_tokens: int = 4096,
        device: torch.device | str | None = None,
    ) -> None:
        self._scorer = ExitScorer(model, answers, output, max_tokens)
        self.prompt: Prompt = PairPrompt() if prompt is None else prompt
        self._output = output
        self.model, self.tokenizer, self.policy = model.eval(), tokenizer, policy
        cached = as_count(prefix_cache_bytes, "prefix_cache_bytes")
        self.cache = PrefixCache(cached) if cached else None
        self._batcher: SharedBatcher[_Piece, RowScores] = SharedBatcher(
            self._predict_pieces, max_size=self.max_tokens, max_wait_ms=0.0, capacity=1 << 62
        )
        if device is None:
            model.to(model.backbone.device)
        else:
            self.to(device)

    @classmethod
    def from_model(
        cls,
        model: torch.nn.Module,
        tokenizer: Any,
        answers: Sequence[str] = ("No", "Yes"),
        *,
        reading: Reading | None = None,
        exits: Sequence[int] | None = None,
        **options: Any,
    ) -> EarlyExitRanker:
        """A ranker out of a causal model that was tuned to answer a question with one of some words.

        Every head begins as the rows of the LM head for the answers' first tokens (the mean of the rows of all of its
        tokens, where they all count), behind the final norm. Full depth gives the model's own probabilities. Earlier
        exits are guesses until they are trained; calibration finds out how far they may be trusted.

        Heads are copies: adapters on the LM head or the final norm that are switched or scaled later do not reach them
        (those on layers do). Make another ranker then, or read answers with ``"sum"``, which is the model's own at full
        depth whatever is switched.

        Args:
            model: a causal or image-text-to-text model of transformers, LoRA or not.
            tokenizer: of the model.
            answers: at least two, as they follow the prompt (mind a space in front); the last one is the positive
                answer, of yes and no the second.
            reading: by which tokens an answer is scored (:class:`~reasonrec_fast.early_exit.answers.Answers`); by
                default the first alone where these differ, else all.
            exits: layers with heads; None spreads six over the depth.
            options: of the ranker, ``device`` and ``prompt`` among them.

        Raises:
            TypeError: a model of another family, or one without an LM head.
            ValueError: answers that cannot be told apart, or fewer than two.
        """
        causal, chosen = causal_parts(model), Answers.of(tokenizer, answers, reading)
        exiting = EarlyExitModel(Decoder(model), exits, ensemble_size=1, num_answers=len(chosen.names))
        chosen.check_vocabulary(exiting.backbone.vocabulary)
        tokens = chosen.token_ids if chosen.whole else [ids[:1] for ids in chosen.token_ids]
        for head in exiting.heads:
            head.start_from(causal, tokens)
        output = OutputHead(model) if chosen.whole else None
        return cls(exiting, tokenizer, answers=chosen, output=output, **options)

    @property
    def answers(self) -> Answers | None:
        """What the heads choose from; None where nothing but labels is known of them."""
        return self._scorer.answers

    @property
    def max_tokens(self) -> int:
        """Of a batch."""
        return self._scorer.max_tokens

    @property
    def device(self) -> torch.device:
        return self.model.backbone.device

    def to(self, device: torch.device | str) -> EarlyExitRanker:
        """Move heads, layers and the LM head where answers are read by all of their tokens to another device; cached
        prefixes are forgotten. Layers and LM head are the caller's own model's.

        Raises:
            ValueError: a device that is not there.
        """
        device = resolve_device(device)
        self.model.to(device)
        if self._output is not None:
            self._output.to(device)
        if self.cache is not None:
            self.cache.clear()
        return self

    def predict(
        self,
        requests: Sequence[Request] | Callable[[np.ndarray], Sequence[Request]],
        *,
        features: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
        shallow: torch.Tensor | None = None,
        confidence: np.ndarray | None = None,
        strata: np.ndarray | None = None,
        early_exit: bool = True,
    ) -> RowScores:
        """Scores of every request, in their order: the probability of the positive answer, and those of all.

        Args:
            requests: (prefix, candidate) pairs, which are the model's whole prompt; or, with an offset, what makes
                those of the rows that it is given (ascending, int64): it is asked for the requests that go on alone.
            features: standardised, float32 ``[R, F]``, for heads that read some.
            offset: logits of depth 0, float32 ``[R]`` (``[R, L]`` for more than two answers), for heads that correct
                them.
            shallow: logits of who leaves at depth 0, as the offset has them; by default the offset.
            confidence: at depth 0, ``[R]``, larger is surer: minus the predicted gain of going on, for instance
                (:class:`~reasonrec_fast.early_exit.depth_zero.DepthZero` makes both). By default that of ``shallow``,
                by the policy's measure.
            strata: row of the policy's thresholds, int64 ``[R]``; by default the first.
            early_exit: False reads every layer.

        Raises:
            TypeError: requests that are no pairs, or token ids that are no whole numbers.
            ValueError: an empty request, texts without a tokenizer, ids that the backbone does not know, a text that is
                too long (the longest answer's tokens included, where they all count), or inputs that are missing, not
                wanted, of another shape, or not finite.
        """
        if offset is None and callable(requests):
            raise ValueError("requests: expected a sequence, as only an offset tells which go on; got a function")
        if not callable(requests):
            requests = listed(requests)
        size = len(offset) if callable(requests) and offset is not None else len(requests)  # type: ignore[arg-type]
        given = features, offset, shallow, confidence, strata
        inputs, shallow, confidence = checked_inputs(self.model, size, *given)
        policy, on = self.policy if early_exit else None, np.arange(size)
        check_strata(inputs.strata, policy)
        if shallow is not None and policy is not None:
            policy.check_exits(len(self.model.depths))
            if confidence is None:
                confidence = logit_confidence(shallow, policy.measure, self.model.num_answers)
            rows_of = None if inputs.strata is None else inputs.strata.cpu().numpy()
            leaving = policy.leaves_at_zero(confidence, rows_of)
            check_leaving(shallow, leaving)
            on = np.flatnonzero(~leaving)
        scores = RowScores.empty(size, self.model.num_answers, self.device)
        scores.depth.zero_()
        if shallow is not None:
            put_logits(scores, shallow)
        if len(on):
            chosen = requests(on) if callable(requests) else [requests[row] for row in on.tolist()]
            if len(chosen) != len(on):
                raise ValueError(f"requests: expected {len(on)}, one a row that goes on; got {len(chosen)}")
            deeper = self.predict_encoded(self.encode(chosen), inputs=inputs.of(on), early_exit=early_exit)
            scores.put(on_device(on, self.device), deeper)
        return scores

    def rank(
        self, query: str, documents: Sequence[str], top_k: int | None = None, return_documents: bool = False
    ) -> list[dict[str, Any]]:
        """Order documents by how likely the positive answer is for each, as ``CrossEncoder.rank`` of
        sentence-transformers does.

        Args:
            query: what all documents are asked about; it is read once.
            documents: texts, at least one.
            top_k: how many to return; None for all.
            return_documents: whether the documents' texts are among the results.

        Returns:
            ``{"corpus_id": index of the document, "score": probability}``, and ``"text"`` if it is asked for; best
            first, the lower index first of equal scores.

        Raises:
            TypeError: a query or document that is no text, or documents that are not a sequence of texts.
            ValueError: no documents, ``top_k`` below 1, or a document whose score is NaN.
        """
        if isinstance(documents, str | Set | Mapping) or not isinstance(documents, Iterable):
            raise TypeError(f"documents: expected a sequence of texts; got {documents!r}")
        documents = list(documents)  # a table's column is read by position
        if not documents:
            raise ValueError("documents: expected at least one; got none")
        if top_k is not None:
            top_k = as_count(top_k, "top_k", 1)
        scores = self.predict([self.prompt(query, document) for document in documents]).probability.tolist()
        for index, score in enumerate(scores):
            if math.isnan(score):
                raise ValueError(
                    f"documents: expected such as the model gives numbers for; got nan for document {index}"
                )
        order = sorted(range(len(documents)), key=lambda index: -scores[index])[:top_k]
        results: list[dict[str, Any]] = [{"corpus_id": index, "score": scores[index]} for index in order]
        if return_documents:
            for result in results:
                result["text"] = documents[result["corpus_id"]]
        return results

    def encode(self, requests: Sequence[Request]) -> list[EncodedRequest]:
        """Every request's token ids (:func:`~reasonrec_fast.early_exit.requests.encode_requests`)."""
        encoded = encode_requests(requests, self.tokenizer, self.model.backbone)
        if encoded:
            self.check_length(max(len(text) for text, _ in encoded), "requests")
        return encoded

    def check_length(self, tokens: int, argument: str) -> None:
        """Refuse texts that are too long, with the longest answer behind them where all of its tokens count.

        Raises:
            ValueError: ``tokens``, of the longest, are more.
        """
        backbone, answer = self.model.backbone, 0
        if self.answers is not None and self.answers.whole:
            answer = max(map(len, self.answers.token_ids))
        if answer and tokens <= backbone.max_length < tokens + answer:
            raise ValueError(
                f"{argument}: expected at most {backbone.max_length - answer} tokens a text, before {answer} of the "
                f"longest answer; got {tokens}"
            )
        backbone.check_length(tokens, argument)

    def predict_groups(
        self,
        groups: Sequence[TokenGroup],
        inputs: GroupInputs | None = None,
        *,
        early_exit: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> RowScores:
        """Scores of token groups that all go on from depth 0, on the CPU. Any number of threads may call it: they share
        batches.

        Args:
            groups: prefixes and suffixes, ``R`` rows.
            inputs: what goes with the rows.
            early_exit: False reads every layer.
            progress: is told how many rows were just scored.

        Raises:
            TypeError: strata that are no whole numbers.
            ValueError: a group that the model cannot read, or inputs that are missing, not wanted, of another shape, or
                not finite.
        """
        inputs, groups = inputs or GroupInputs(), list(groups)
        check_groups(groups, self.model.backbone)
        rows = sum(len(suffixes) for _, suffixes in groups)
        inputs, *_ = checked_inputs(self.model, rows, inputs.features, inputs.offset, strata=inputs.strata)
        if groups:
            longest = max(len(prefix) + max(map(len, suffixes)) for prefix, suffixes in text_groups(groups))
            self.check_length(longest, "groups")
        check_strata(inputs.strata, self.policy if early_exit else None)
        if inputs.strata is None:  # a batch may hold rows of other callers, which have some
            inputs = replace(inputs, strata=torch.zeros(rows, dtype=torch.int64))
        pieces, row = [], 0
        for group in pieces_of(groups, self.max_tokens):
            pieces.append(_Piece(group, inputs.of(slice(row, row + len(group[1]))), early_exit))
            row += len(group[1])
        scores, row = RowScores.empty(row, self.model.num_answers, torch.device("cpu")), 0
        for part in self._shared(pieces):
            size = len(part.depth)
            scores.put(slice(row, row + size), part)
            row += size
            if progress is not None:
                progress(size)
        return scores

    def _shared(self, pieces: list[_Piece]) -> Iterator[RowScores]:
        """The scores of every piece, in order, from batches that concurrent callers share."""
        sizes = [num_tokens(piece.group) for piece in pieces]
        if not has_host_library():
            for part in within(sizes, self.max_tokens):
                yield from self._predict_pieces([pieces[position] for position in part])
            return
        futures: list[Future[RowScores]] = []
        with self._batcher.use() as batcher:
            try:
                futures = batcher.submit_all(pieces, sizes)
                for future in futures:
                    yield future.result()
            finally:  # a caller who gives up leaves no work behind
                for future in futures:
                    future.cancel()

    def _predict_pieces(self, pieces: list[_Piece]) -> list[RowScores]:
        """Those that may leave early and those that may not are batches of their own."""
        results: dict[int, RowScores] = {}
        for early_exit in (True, False):
            positions = [position for position, piece in enumerate(pieces) if piece.early_exit == early_exit]
            if positions:
                inputs = GroupInputs.joined([pieces[position].inputs for position in positions])
                groups = [pieces[position].group for position in positions]
                scores = self._predict_batch(groups, inputs, early_exit).cpu()  # in one copy
                results.update(zip(positions, scores.split([len(suffixes) for _, suffixes in groups]), strict=True))
        return [results[position] for position in range(len(pieces))]

    def predict_encoded(
        self,
        encoded: Sequence[EncodedRequest],
        *,
        inputs: GroupInputs | None = None,
        early_exit: bool = True,
    ) -> RowScores:
        """What :meth:`predict` does of requests that all go on from depth 0, as :meth:`encode` made them."""
        inputs = inputs or GroupInputs()
        scores = RowScores.empty(len(encoded), self.model.num_answers, self.device)
        for groups, rows in request_batches(encoded, self.max_tokens, cached=self.cache is not None):
            scores.put(on_device(rows, self.device), self._predict_batch(groups, inputs.of(rows), early_exit))
        return scores

    def calibrate(
        self,
        requests: Sequence[Request],
        *,
        alpha: float,
        delta: float = 0.1,
        loss: Callable[[np.ndarray, np.ndarray], np.ndarray] = disagreement,
        users: np.ndarray | None = None,
        measure: Measure | None = None,
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
            loss: from scores ``[E, N]`` of the exits and ``[N]`` of full depth to values in [0, 1], ``[E, N]``; of more
                than two answers the scores are probabilities of all, ``[E, N, L]`` and ``[N, L]``.
            users: who asked, ``[N]``, where requests of a user go together: the promise is then of the mean over users.
            measure, trend: of the policy; by default :func:`~reasonrec_fast.early_exit.heads.default_measure`.
            features, offset, shallow, confidence: as :meth:`predict` will get them; what they come from must have been
                learnt from other requests.
        """
        measure = measure or default_measure(self.model.num_answers)
        requests = listed(requests)
        if users is not None:
            same_length(requests=requests, users=as_keys(users, "users")[1])
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
        levels: Sequence[float] | None = None,
        measure: Measure | None = None,
        trend: bool = False,
        features: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
        shallow: torch.Tensor | None = None,
        confidence: np.ndarray | None = None,
    ) -> ExitPolicy:
        """Choose the thresholds with the least depth that keep metrics (AUC, for instance) within limits on the
        requests given; without a promise for others. The arguments are those of :meth:`calibrate`.

        Args:
            limits: of metrics of the positive answer's probabilities ``[N]``; with ``levels``, of expected levels.
            levels: what the answers stand for, ``[L]``; needed for more than two answers.

        Raises:
            ValueError: no levels for more than two answers, or not one an answer.
        """
        measure = measure or default_measure(self.model.num_answers)
        if levels is None and self.model.num_answers > 2:
            raise ValueError(f"levels: expected one for each of {self.model.num_answers} answers; got None")
        values = None if levels is None else checked_levels(levels, self.model.num_answers)
        scores, sureness = self._all_exits(requests, measure, GroupInputs(features, offset), shallow, confidence)
        if values is not None:
            two = scores if scores.ndim == 3 else np.stack([1 - scores, scores], -1)
            scores = two @ values
        thresholds = choose_thresholds(
            scores, sureness, self.model.depths, limits, trend=trend, heads_from=int(self.model.offset)
        )
        self.policy = ExitPolicy((thresholds,), measure, trend)
        return self.policy

    def save_pretrained(self, folder: str | Path) -> None:
        """Write heads (safetensors), policy and bounds; the causal model and its tokenizer have a
        ``save_pretrained`` of their own."""
        cached = 0 if self.cache is None else self.cache.max_bytes
        bounds = {"max_tokens": self.max_tokens, "prefix_cache_bytes": cached}
        storage.save(folder, self.model, self.policy, self.answers, **bounds)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        model: torch.nn.Module,
        tokenizer: Any = None,
        *,
        prompt: Prompt | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> EarlyExitRanker:
        """Read what :meth:`save_pretrained` wrote, around the causal model that it belongs to.

        Args:
            folder: of :meth:`save_pretrained`, or a repository of the Hugging Face hub.
            model: the causal model, LoRA or not.
            tokenizer: of the model.
            prompt: makes a request of a query and a document; it is not stored.
            device: where to move the model; by default it stays where it is. Any device may have saved the heads.
            revision, token: of the repository.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: the folder holds something else, belongs to a model of another shape, or a device that is not
                there.
        """
        heads, policy, answers, bounds = storage.load(folder, Decoder(model), revision=revision, token=token)
        output = OutputHead(model) if answers is not None and answers.whole else None
        return cls(
            heads, tokenizer, answers=answers, output=output, prompt=prompt, policy=policy, device=device, **bounds
        )  # type: ignore[arg-type]

    def exit_logits(
        self,
        groups: Sequence[TokenGroup],
        inputs: GroupInputs | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Logits of yes of every ensemble member at every head, float64 ``[E, R, K]``
        (:meth:`~reasonrec_fast.early_exit.scorer.ExitScorer.exit_logits`)."""
        return self._scorer.exit_logits(groups, inputs, progress)

    def _predict_batch(self, groups: Sequence[TokenGroup], inputs: GroupInputs, early_exit: bool) -> RowScores:
        return self._scorer.scores(groups, inputs, self.policy if early_exit else None, self.cache)

    def _all_exits(
        self,
        requests: Sequence[Request],
        measure: Measure,
        inputs: GroupInputs,
        shallow: torch.Tensor | None,
        confidence: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and confidence of requests at every exit, depth 0 included."""
        requests = listed(requests)
        if not requests:
            raise ValueError("requests: expected at least one; got none")
        given = inputs.features, inputs.offset, shallow, confidence, inputs.strata
        inputs, shallow, confidence = checked_inputs(self.model, len(requests), *given)
        encoded, cached = self.encode(requests), self.cache is not None
        return self._scorer.all_exits(encoded, measure, inputs, shallow, confidence, cached)
