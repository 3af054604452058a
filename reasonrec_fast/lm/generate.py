"""Batched generation over shared prefixes, with the log-probability and entropy of every token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from operator import index
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from reasonrec_fast.arrays import as_count
from reasonrec_fast.devices import explain_out_of_memory, on_device
from reasonrec_fast.lm.adapters import unwrapped
from reasonrec_fast.lm.chat import check_unicode
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.decoding_batch import DecodingBatch
from reasonrec_fast.lm.detokenizer import Detokenizer, special_tokens
from reasonrec_fast.lm.inputs import Text, TextInput, has_segments, text_of
from reasonrec_fast.lm.layout import TokenGroup, within
from reasonrec_fast.lm.output import OutputHead
from reasonrec_fast.lm.sampling import SamplingParams, draw_tokens, uniform_numbers

Prompt = str | TextInput
"""A text, its token ids, or segments with embeddings among them."""
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Generation:
    """A sequence that was generated.

    Attributes:
        token_ids: of the new tokens, the stop token included.
        text: of these tokens, without special tokens and what a stop takes away; None without a tokenizer.
        logprobs: of each token under the model's distribution over the whole vocabulary at the request's
            ``statistics_temperature`` (1 by default), before ``top_p`` and ``top_k``.
        entropies: of that distribution, in nats.
        finish_reason: ``"stop"`` at a stop token or stop string, ``"length"`` at ``max_new_tokens``.
    """

    token_ids: list[int]
    text: str | None
    logprobs: list[float]
    entropies: list[float]
    finish_reason: FinishReason


@dataclass(frozen=True)
class Piece:
    """What a step adds to a sequence.

    Attributes:
        request, sample: which sequence, as in the result of :meth:`TextGenerator.generate`.
        token_id: the new token.
        text: what is certain of the text now: whole characters, nothing of a stop string. The pieces of a sequence make
            up its text.
        finish_reason: of the last piece; else None.
    """

    request: int
    sample: int
    token_id: int
    text: str
    finish_reason: FinishReason | None


@dataclass
class _Sequence:
    """A sequence on its way."""

    request: int
    sample: int
    params: SamplingParams
    stop_tokens: frozenset[int]
    uniform: np.ndarray
    detokenizer: Detokenizer | None
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, token: int, logprob: float, entropy: float) -> Piece:
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.entropies.append(entropy)
        ended, text = token in self.stop_tokens, ""
        if self.detokenizer is not None:
            text = "" if ended else self.detokenizer.add(token)
            ended = ended or self.detokenizer.stopped
        if ended:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.params.max_new_tokens:
            self.finish_reason = "length"
        if self.finish_reason and self.detokenizer is not None:
            text += self.detokenizer.end()
            if self.detokenizer.stopped:
                self.finish_reason = "stop"
        self.texts.append(text)
        return Piece(self.request, self.sample, token, text, self.finish_reason)

    def result(self) -> Generation:
        assert self.finish_reason is not None
        text = None if self.detokenizer is None else "".join(self.texts)
        return Generation(self.token_ids, text, self.logprobs, self.entropies, self.finish_reason)


class TextGenerator:
    """Generates continuations with any model that :class:`~reasonrec_fast.lm.decoder.Decoder` takes.

    A group is a prefix and the prompts that follow it; a request is a prompt, of which ``num_samples`` sequences are
    generated. Prefixes and prompts are read once, without padding, and their keys and values are shared
    (:class:`~reasonrec_fast.lm.decoding_batch.DecodingBatch`). All sequences of a batch take a step together; those
    that end leave it.

    What a sequence becomes depends on its own prefix and prompt, settings, seed and index in its request, and not on
    what lies beside it in the batch, nor on the order (on a GPU the last bits of logits may depend on the number of
    sequences, and a draw or an argmax that they decide with them). The model is read and not changed: any number of
    threads may call. On a GPU each step waits once for the host, to copy tokens and statistics.

    Log-probabilities and entropies are ``ops.exit_confidence``'s (greedy) and ``ops.token_logprobs``'s, with float32
    sums; greedy decoding holds no logits. Sampling holds the logits of one step, which are rounded as the model rounds
    them.

    Args:
        model: a causal or image-text-to-text model of transformers, in peft's wrapping or not, in evaluation mode.
        tokenizer: for texts, in prompts and results; without it everything is token ids.
        max_sequences: in a batch; what is more waits. (A group with more is a batch of its own.)

    Raises:
        TypeError: a model that cannot be taken apart.
        ValueError: a model in training mode, or ``max_sequences`` below 1.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None, *, max_sequences: int = 64) -> None:
        max_sequences = as_count(max_sequences, "max_sequences", 1)
        self.decoder, self.head = Decoder(model), OutputHead(model)
        self.tokenizer, self.max_sequences = tokenizer, max_sequences
        self._model = model
        self._special = frozenset() if tokenizer is None else special_tokens(tokenizer)

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """At which the model ends its texts, as transformers' ``generate`` has it: of its ``generation_config``; of its
        ``config`` where it has no other."""
        causal: Any = unwrapped(self._model)
        eos = getattr(getattr(causal, "generation_config", None) or self.decoder.base.config, "eos_token_id", None)
        return frozenset() if eos is None else frozenset([eos] if isinstance(eos, int) else eos)

    def generate(
        self,
        groups: Sequence[tuple[Prompt, Sequence[Prompt]]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_piece: Callable[[Piece], None] | None = None,
    ) -> list[list[Generation]]:
        """Generate the samples of every request.

        Args:
            groups: prefixes, each with its prompts, as texts, token ids or segments with
                :class:`~reasonrec_fast.lm.inputs.Embeddings` among them. A prefix may be empty (the samples of a
                prompt then share the prompt), a prompt not. Texts of prefixes, and of prompts without one, get the
                tokenizer's special tokens; prefix and prompt are tokenized apart.
            params: of all requests, or of each.
            on_piece: called with each piece of each sequence as soon as it is there.

        Returns:
            for each request, in the order of the groups and their prompts, its samples.

        Raises:
            TypeError: groups that are no pairs, or token ids that are no whole numbers.
            ValueError: an empty prompt, a token id that the model does not know, a prompt that with
                ``max_new_tokens`` is longer than the model reads, or settings that do not fit (with the request).
            FloatingPointError: logits that are not finite (with the request).
        """
        run = self._run(groups, params)
        while True:
            try:
                piece = next(run)
            except StopIteration as end:
                return end.value
            if on_piece is not None:
                on_piece(piece)

    def stream(
        self,
        groups: Sequence[tuple[Prompt, Sequence[Prompt]]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[Piece]:
        """The pieces of :meth:`generate`, one after the other; who stops reading ends the generation."""
        yield from self._run(groups, params)

    def _run(self, groups: Any, params: Any) -> Any:
        """Yields pieces, returns results."""
        token_groups = self._token_groups(groups)
        count = sum(len(prompts) for _, prompts in token_groups)
        of_request = self._params(params, count)
        self._check_lengths(token_groups, of_request)
        if unwrapped(self._model).training:
            raise ValueError(
                "model: expected one in evaluation mode, as dropout would change its answers; call .eval()"
            )
        results: list[list[Generation]] = []
        first = np.cumsum([0] + [len(prompts) for _, prompts in token_groups])
        sizes = [sum(p.num_samples for p in of_request[first[g] : first[g + 1]]) for g in range(len(token_groups))]
        for part in within(sizes, self.max_sequences):
            requests = range(first[part.start], first[part.stop])
            sequences = self._sequences(requests, of_request)
            yield from self._generate(token_groups[part.start : part.stop], sequences)
            at = 0
            for request in requests:
                samples = of_request[request].num_samples
                results.append([sequence.result() for sequence in sequences[at : at + samples]])
                at += samples
        return results

    def _generate(self, groups: list[TokenGroup], sequences: list[_Sequence]) -> Iterator[Piece]:
        """Pieces of one batch. No mode of torch is on where it yields: it would be the caller's."""
        of_request = {sequence.request: sequence.params for sequence in sequences}  # in order
        samples = [params.num_samples for params in of_request.values()]
        longest = [params.max_new_tokens for params in of_request.values()]
        tokens = sum(len(prefix) + sum(map(len, prompts)) for prefix, prompts in groups)
        what = f"a batch of {len(sequences)} sequences with {tokens} tokens of prompts"
        with torch.inference_mode(), explain_out_of_memory(what, self.decoder.device):
            batch = DecodingBatch(self.decoder, groups, samples, longest)
        while True:
            with torch.inference_mode(), explain_out_of_memory(what, self.decoder.device):
                chosen = self._choose(batch.hidden, sequences)
                # Token ids are below 2⁵³: one copy for all three.
                columns = torch.stack([column.double() for column in chosen]).cpu().numpy()
            for sequence, (token, logprob, entropy) in zip(sequences, columns.T.tolist(), strict=True):
                if not np.isfinite(logprob):
                    raise FloatingPointError(
                        f"model: expected finite logits; got a log-probability of {logprob} in request "
                        f"{sequence.request}, token {len(sequence.token_ids)}"
                    )
                yield sequence.add(int(token), logprob, entropy)
            rows = np.flatnonzero([sequence.finish_reason is None for sequence in sequences])
            if not len(rows):
                return
            with torch.inference_mode(), explain_out_of_memory(what, self.decoder.device):
                tokens_on = chosen[0]
                if len(rows) < len(sequences):
                    batch.keep(rows)
                    tokens_on = tokens_on[on_device(rows, tokens_on.device)]
                    sequences = [sequences[row] for row in rows]
                batch.step(tokens_on)

    def _choose(
        self, hidden: torch.Tensor, sequences: list[_Sequence]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Next tokens, log-probabilities and entropies ``[R]``."""
        normalized = self.head.normalize(hidden)
        kinds: dict[tuple[bool, float], list[int]] = {}
        for row, sequence in enumerate(sequences):
            kinds.setdefault((sequence.params.greedy, sequence.params.statistics_temperature), []).append(row)
        chosen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        for (greedy, temperature), rows in kinds.items():
            some = normalized if len(kinds) == 1 else normalized[on_device(np.array(rows), hidden.device)]
            chosen.append(
                self.head.most_likely(some, temperature)
                if greedy
                else self._sample(some, [sequences[row] for row in rows], temperature)
            )
        if len(chosen) == 1:
            return chosen[0]
        order = on_device(np.argsort(np.concatenate(list(kinds.values()))), hidden.device)
        tokens, logprobs, entropies = (torch.cat(column)[order] for column in zip(*chosen, strict=True))
        return tokens, logprobs, entropies

    def _sample(
        self, normalized: torch.Tensor, sequences: list[_Sequence], temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = self.head.logits(normalized)
        uniform = np.array([sequence.uniform[len(sequence.token_ids)] for sequence in sequences])
        tokens = draw_tokens(logits, [s.params for s in sequences], on_device(uniform, logits.device))
        return tokens, *self.head.statistics(normalized, tokens, temperature, logits)

    def _sequences(self, requests: range, params: list[SamplingParams]) -> list[_Sequence]:
        own_stops = self.stop_token_ids
        return [
            _Sequence(
                request,
                sample,
                p,
                own_stops if p.stop_token_ids is None else frozenset(p.stop_token_ids),
                np.empty(0) if p.greedy else uniform_numbers(p.seed, sample, p.max_new_tokens),
                None if self.tokenizer is None else Detokenizer(self.tokenizer, p.stop, self._special),
            )
            for request in requests
            for p in [params[request]]
            for sample in range(p.num_samples)
        ]

    def _params(self, params: Any, count: int) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            by_request = [params or SamplingParams()] * count
        elif isinstance(params, str | Set | Mapping) or not isinstance(params, Iterable):
            raise TypeError(f"params: expected SamplingParams, or a list of them; got {params!r}")
        else:
            by_request = list(params)
            other = next((p for p in by_request if not isinstance(p, SamplingParams)), None)
            if other is not None:
                raise TypeError(f"params: expected SamplingParams; got {other!r}")
            if len(by_request) != count:
                raise ValueError(
                    f"params: expected one for all requests or {count}, one a request; got {len(by_request)}"
                )
        most = max(self.decoder.vocabulary, self.head.vocab_size)
        for request, p in enumerate(by_request):
            strange = next((token for token in p.stop_token_ids or () if not 0 <= token < most), None)
            if strange is not None:
                raise ValueError(f"params: expected stop_token_ids in [0, {most}); got {strange} in request {request}")
        if self.tokenizer is None and any(p.stop for p in by_request):
            request = next(index for index, p in enumerate(by_request) if p.stop)
            raise ValueError(
                f"params: expected no stop strings, since there is no tokenizer; got some in request {request}"
            )
        return by_request

    def _token_groups(self, groups: Any) -> list[TokenGroup]:
        read: list[TokenGroup] = []
        request = 0
        if isinstance(groups, str | Set | Mapping) or not isinstance(groups, Iterable):
            raise TypeError(f"groups: expected a list of (prefix, prompts) pairs; got {groups!r}")
        for number, group in enumerate(groups):
            if isinstance(group, str | Set | Mapping) or not hasattr(group, "__len__") or len(group) != 2:
                raise TypeError(f"groups: expected (prefix, prompts) pairs; got {group!r} in group {number}")
            prefix, prompts = group
            if isinstance(prompts, str | Set | Mapping) or not isinstance(prompts, Iterable):
                raise TypeError(f"groups: expected a list of prompts; got {prompts!r} in group {number}")
            ids = self._ids(prefix, request, first=True)
            read.append((ids, [self._ids(p, request + i, first=not len(ids)) for i, p in enumerate(prompts)]))
            if not read[-1][1]:
                raise ValueError(f"groups: expected at least one prompt a group; got none in group {len(read) - 1}")
            empty = next((i for i, prompt in enumerate(read[-1][1]) if not len(prompt)), None)
            if empty is not None:
                raise ValueError(
                    f"groups: expected prompts of at least one token; got none in request {request + empty}"
                )
            request += len(read[-1][1])
        return read

    def _ids(self, text: Any, request: int, *, first: bool) -> TextInput:
        if isinstance(text, str):
            if self.tokenizer is None:
                raise ValueError(
                    f"groups: expected token ids, since there is no tokenizer; got a text in request {request}"
                )
            check_unicode(text, f"groups: request {request}")
            return self.tokenizer(text, add_special_tokens=first)["input_ids"] if text else []
        if has_segments(text):
            text = text_of(text, "groups")
        try:
            ids = text.ids.tolist() if isinstance(text, Text) else [index(token) for token in text]
        except TypeError:
            raise TypeError(f"groups: expected texts or whole numbers; got {text!r} in request {request}") from None
        most = self.decoder.vocabulary  # on a GPU a token beyond it would end all work of the process
        strange = next((token for token in ids if not 0 <= token < most), None)
        if strange is not None:
            raise ValueError(f"groups: expected token ids in [0, {most}); got {strange} in request {request}")
        return text if isinstance(text, Text) else ids

    def _check_lengths(self, groups: list[TokenGroup], params: list[SamplingParams]) -> None:
        lengths = [len(prefix) + len(prompt) for prefix, prompts in groups for prompt in prompts]
        for request, (length, p) in enumerate(zip(lengths, params, strict=True)):
            if length + p.max_new_tokens > self.decoder.max_length:
                raise ValueError(
                    f"groups: expected prefix, prompt and max_new_tokens of at most {self.decoder.max_length} tokens "
                    f"together; got {length} + {p.max_new_tokens} in request {request}"
                )
