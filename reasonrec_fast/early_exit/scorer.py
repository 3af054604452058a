"""The scores of a batch at the exit where each row leaves, or at every exit: heads and whole answers together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from reasonrec_fast.arrays import as_count
from reasonrec_fast.devices import on_device
from reasonrec_fast.early_exit.answers import Answers, answer_scores
from reasonrec_fast.early_exit.batching import batches_of
from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.early_exit.requests import EncodedRequest, GroupInputs, request_batches
from reasonrec_fast.early_exit.scores import RowScores, logit_confidence, put_logits
from reasonrec_fast.lm.layout import TokenGroup
from reasonrec_fast.lm.output import OutputHead
from reasonrec_fast.lm.prefix_cache import PrefixCache
from reasonrec_fast.ops.exit_confidence import Measure


def disagreement(scores: np.ndarray, full: np.ndarray) -> np.ndarray:
    """1 where a score's answer is another than that of full depth, ``[..., N]``.

    Args:
        scores: probabilities of the positive of two answers ``[..., N]``, or of all answers ``[..., N, L]``.
        full: those of full depth, ``[N]`` or ``[N, L]``.

    >>> disagreement(np.array([0.2, 0.9]), np.array([0.6, 0.7])).tolist()
    [1.0, 0.0]
    >>> disagreement(np.array([[[0.2, 0.7, 0.1]]]), np.array([[0.5, 0.3, 0.2]])).tolist()
    [[1.0]]
    """
    if full.ndim == 2:
        return (scores.argmax(-1) != full.argmax(-1)).astype(np.float64)
    return ((scores > 0.5) != (full > 0.5)).astype(np.float64)


class ExitScorer:
    """Scores token groups by heads, and at full depth by the model's own answers where all of their tokens count.

    Args:
        model: backbone and heads.
        answers: what the heads choose from; None where nothing but labels is known of them.
        output: the final norm and LM head, for answers that are scored by all of their tokens.
        max_tokens: of a batch.

    Raises:
        ValueError: answers that do not fit the heads or each other.
    """

    def __init__(
        self, model: EarlyExitModel, answers: Answers | None, output: OutputHead | None, max_tokens: int
    ) -> None:
        max_tokens = as_count(max_tokens, "max_tokens", 1)
        if answers is not None and len(answers.names) != model.num_answers:
            raise ValueError(f"answers: expected {model.num_answers}, as the heads have; got {len(answers.names)}")
        if (answers is not None and answers.whole) != (output is not None):
            raise ValueError(
                f"output: expected {'None' if output else 'the LM head'} for answers that are read by "
                f"{None if answers is None else answers.reading!r}"
            )
        if answers is not None:
            answers.check_vocabulary(model.backbone.vocabulary)
            if answers.whole and (model.offset or model.heads[0].units is not None):
                raise ValueError(
                    f"answers: expected reading 'first_token' for heads with an offset or features, of which the "
                    f"model's own answers know nothing; got {answers.reading!r}"
                )
        self.model, self.answers, self.max_tokens = model, answers, max_tokens
        self._output = output

    @torch.inference_mode()
    def scores(
        self,
        groups: Sequence[TokenGroup],
        inputs: GroupInputs,
        policy: ExitPolicy | None,
        cache: PrefixCache | None,
    ) -> RowScores:
        """Scores of a batch's rows, where the model is; without a policy every layer is read."""
        if self._output is None:
            return self.model.predict(
                groups, inputs.features, policy, inputs.strata, cache, offset=inputs.offset
            )  # fmt: skip
        rows = sum(len(suffixes) for _, suffixes in groups)
        if policy is None:
            scores = RowScores.empty(rows, self.model.num_answers, self.model.backbone.device)
            scores.depth.fill_(self.model.backbone.num_layers)
            put_logits(scores, self._whole_answers(groups))
            return scores
        scores = self.model.predict(groups, inputs.features, policy, inputs.strata, cache, offset=inputs.offset)
        deep = (scores.depth == self.model.backbone.num_layers).cpu().numpy()
        if deep.any():
            at = on_device(np.flatnonzero(deep), self.model.backbone.device)
            exact = RowScores.empty(len(at), self.model.num_answers, self.model.backbone.device)
            exact.depth.fill_(self.model.backbone.num_layers)
            put_logits(exact, self._whole_answers(_chosen_rows(groups, deep)))
            scores.put(at, exact)
        return scores

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

        Raises:
            ValueError: more than two answers, or answers that are read by all of their tokens.
        """
        inputs = inputs or GroupInputs()
        heads = self.model.heads
        if self.model.num_answers != 2 or self._output is not None:
            raise ValueError(f"model: expected heads of two answers by their first tokens; got {self.answers}")
        logits = np.empty((len(heads), sum(len(suffixes) for _, suffixes in groups), len(heads[0].weight)))
        for batch, rows in batches_of(groups, self.max_tokens):
            logits[:, rows] = torch.stack(self._log_odds(batch, inputs.of(rows))).cpu().numpy()  # one copy a batch
            if progress is not None:
                progress(len(rows))
        return logits

    def all_exits(
        self,
        encoded: Sequence[EncodedRequest],
        measure: Measure,
        inputs: GroupInputs,
        shallow: torch.Tensor | None,
        confidence: np.ndarray | None,
        cached: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores ``[E, N]`` (``[E, N, L]`` for more than two answers) and confidence ``[E, N]`` at every exit, depth 0
        included.

        Args:
            encoded: ``N`` requests.
            measure: of the confidence.
            inputs: what goes with the requests.
            shallow, confidence: at depth 0, ``[N]``; None for a model without it, the latter also for that of
                ``shallow``.
            cached: whether batches are made as for a prefix cache.

        Raises:
            ValueError: a score that is NaN.
        """
        exits = len(self.model.depths)
        rest = (self.model.num_answers,) if self.model.num_answers > 2 else ()
        scores, sureness = np.empty((exits, len(encoded), *rest)), np.empty((exits, len(encoded)))
        if shallow is not None:
            if confidence is None:
                confidence = logit_confidence(shallow, measure, self.model.num_answers)
            logits, sureness[0] = shallow.float().cpu(), confidence
            scores[0] = (logits.softmax(-1) if rest else torch.sigmoid(logits)).numpy()
        behind = exits - len(self.model.exits)
        for groups, rows in request_batches(encoded, self.max_tokens, cached=cached):
            of_rows = inputs.of(rows)
            # One copy to the host a batch.
            if rest:
                both = self._distributions(groups, of_rows, measure)
                stacked = torch.stack([torch.cat([d, confidence[:, None]], 1) for d, confidence in both]).cpu().numpy()
                scores[behind:, rows], sureness[behind:, rows] = stacked[..., :-1], stacked[..., -1]
            else:
                statistics = self._exit_statistics(groups, of_rows, measure=measure)
                pairs = torch.stack([torch.stack([s.positive_probability, s.confidence]) for s in statistics], 1)
                scores[behind:, rows], sureness[behind:, rows] = pairs.cpu().numpy()
            if self._output is not None:
                logits = self._whole_answers(groups).cpu()
                scores[-1, rows] = (logits.softmax(-1) if rest else torch.sigmoid(logits)).numpy()
        strange = np.isnan(scores).reshape(exits, len(encoded), -1).any((0, 2))
        if strange.any():  # NaN would agree with itself
            raise ValueError(
                f"requests: expected such as the model gives numbers for; got nan for request {strange.argmax()}"
            )
        return scores, sureness

    def _whole_answers(self, groups: Sequence[TokenGroup]) -> torch.Tensor:
        """Logits of the answers at full depth, by all of their tokens: ``[R, L]``, or ``[R]`` of the second of two."""
        assert self.answers is not None and self._output is not None
        scores = answer_scores(self.model.backbone, self._output, groups, self.answers, self.max_tokens)
        return scores[:, 1] - scores[:, 0] if self.model.num_answers == 2 else scores

    @torch.inference_mode()
    def _exit_statistics(self, groups: Sequence[TokenGroup], inputs: GroupInputs, **options: Any) -> Any:
        return self.model.all_exits(groups, inputs.features, offset=inputs.offset, **options)

    @torch.inference_mode()
    def _log_odds(self, groups: Sequence[TokenGroup], inputs: GroupInputs) -> list[torch.Tensor]:
        return self.model.all_log_odds(groups, inputs.features, offset=inputs.offset)

    @torch.inference_mode()
    def _distributions(self, groups: Sequence[TokenGroup], inputs: GroupInputs, measure: Measure) -> Any:
        return self.model.all_distributions(groups, inputs.features, measure, inputs.offset)


def _chosen_rows(groups: Sequence[TokenGroup], chosen: np.ndarray) -> list[TokenGroup]:
    """Groups of some of their rows, bool ``[R]``."""
    kept: list[TokenGroup] = []
    row = 0
    for prefix, suffixes in groups:
        rows = [suffix for suffix, keep in zip(suffixes, chosen[row : row + len(suffixes)], strict=True) if keep]
        if rows:
            kept.append((prefix, rows))
        row += len(suffixes)
    return kept
