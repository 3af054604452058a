"""How the agent learns from validation events: on some users, and how far it is trusted on others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reasonrec_fast.data import DataError, Histories
from reasonrec_fast.models.classical.stack import Stack
from reasonrec_fast.models.classical.stack_config import StackRanking
from reasonrec_fast.models.reasonrec.agent import ResidualAgent
from reasonrec_fast.models.reasonrec.agent_base import Agent, Slate
from reasonrec_fast.models.reasonrec.agents import Prompts
from reasonrec_fast.models.reasonrec.answers import ndcg
from reasonrec_fast.models.reasonrec.chain_prompts import ChainPrompts
from reasonrec_fast.models.reasonrec.config import AgentConfig, ChainConfig, Task
from reasonrec_fast.models.reasonrec.instruction import ReasoningSample
from reasonrec_fast.models.reasonrec.prompt import TitlePrompts
from reasonrec_fast.models.reasonrec.title_agent import TitleAgent
from reasonrec_fast.training.curriculum import CurriculumSampler
from reasonrec_fast.training.progress import Progress
from reasonrec_fast.training.sft import SupervisedGroup

_logger = logging.getLogger("reasonrec_fast")


@dataclass(frozen=True)
class SlateWriter:
    """Writes the stack's best candidates of a user as the agent reads them.

    Attributes:
        stack: that ranked them.
        prompts: of the agent.
        candidates: how many it reads.
    """

    stack: Stack
    prompts: Prompts
    candidates: int

    def write(
        self,
        ranking: StackRanking,
        users: np.ndarray,
        row: int,
        task: Task = "sequential",
        *,
        consult: bool = False,
        target: int = 0,
    ) -> Slate:
        """The slate of one row of a ranking.

        Args:
            ranking: of ``users``, ``[B]``.
            users: indices.
            row: of the ranking.
            task: ``"direct"`` names no history.
            consult: whether the tools' ranks are in the prompt.
            target: position of the user's next item, for training.
        """
        count = int((ranking.items[row, : self.candidates] >= 0).sum())
        items, logits = ranking.items[row, :count], ranking.logits[row, :count]
        ranks = [self.stack.tool_ranks(ranking.features[row, index]) for index in range(count)] if consult else None
        group = self.prompts.group(int(users[row]), items.tolist(), task, ranks)
        return Slate(group, logits - np.logaddexp.reduce(logits), int(target))


def positions_of(ranking: StackRanking, targets: np.ndarray) -> np.ndarray:
    """Where the target of each row stands in a ranking, int64 ``[B]``; -1 where it does not."""
    is_target = ranking.items == targets[:, None]
    return np.where(is_target.any(1), is_target.argmax(1), -1)


def train_agent(
    agent: Agent,
    writer: SlateWriter,
    ranking: StackRanking,
    users: np.ndarray,
    position: np.ndarray,
    learning: np.ndarray,
    *,
    horizons: np.ndarray,
    histories: Histories,
    samples: Sequence[ReasoningSample],
    fingerprint: dict[str, Any],
    checkpoint: str | Path | None,
    progress: Progress | None,
) -> None:
    """Train the agent on users whose next item is among its candidates.

    Args:
        agent: learns.
        writer: of its slates.
        ranking, users: of the validation users, ``[B]``.
        position: of the next item in the ranking, -1 for none, ``[B]``.
        learning: whom it may learn from, bool ``[B]``.
        horizons: evidence horizons, ``[B]``.
        histories: of the training part.
        samples: questions with chains of thought, which a :class:`ResidualAgent` learns beside.
        fingerprint, checkpoint, progress: as in :meth:`ResidualAgent.train` and :meth:`TitleAgent.read`.

    Raises:
        DataError: nobody to learn from, or no chain of thought where the agent learns some.
    """
    # With one candidate there is nothing to learn.
    rows = np.flatnonzero(learning & (position >= 0) & (ranking.candidates > 1))
    if not len(rows):
        raise DataError(
            "validation: expected a user whose next item is among several candidates of the stack, to learn from; "
            f"got none in {int(learning.sum())} users"
        )
    if isinstance(agent, TitleAgent):
        assert isinstance(writer.prompts, TitlePrompts)
        readers = np.flatnonzero(histories.lengths >= 2)
        readers = np.random.default_rng((agent.config.seed, 3)).permutation(readers)[: agent.config.users]
        groups = [writer.prompts.reading(user) for user in readers.tolist()]
        agent.read(groups, checkpoint=checkpoint, fingerprint=fingerprint, progress=progress)
        agent.train([writer.write(ranking, users, row, target=position[row]) for row in rows.tolist()])
        return
    assert isinstance(agent, ResidualAgent)
    config = agent.config
    generator = np.random.default_rng((config.seed, 2))
    direct, consulted = (generator.random(len(rows)) < share for share in (config.direct, config.consulted))
    slates = [
        writer.write(
            ranking, users, row, "direct" if direct[n] else "sequential", consult=bool(consulted[n]),
            target=position[row],
        )
        for n, row in enumerate(rows.tolist())
    ]  # fmt: skip
    sampler = None
    if config.curriculum is not None:
        counts = np.bincount(histories.items, minlength=int(ranking.items.max()) + 1)
        sampler = CurriculumSampler(config.curriculum, horizons[rows], counts[ranking.items[rows, position[rows]]])
    agent.train(
        slates, sampler, reasoning=_reasoning(agent, samples), checkpoint=checkpoint, fingerprint=fingerprint,
        progress=progress,
    )  # fmt: skip


def reasoning_prompts(agent: ResidualAgent) -> ChainPrompts:
    """What writes the chains of thought that an agent learns beside.

    Raises:
        ValueError: a backbone that reads no more than a chain.
    """
    config = reasoning_of(agent.config)
    return ChainPrompts(
        agent.tokenizer, system=config.system, budget=config.prompt_tokens, stop=agent.tokenizer.eos_token_id,
        chain=config.max_tokens, room=agent.ranker.model.backbone.max_length,
        wordings=config.wordings,
    )  # fmt: skip


def _reasoning(agent: ResidualAgent, samples: Sequence[ReasoningSample]) -> list[SupervisedGroup]:
    """What an agent learns of samples; those that are too long are left out."""
    if not agent.config.reasoning_weight:
        return []
    config, prompts = agent.config, reasoning_prompts(agent)
    fitting = [sample for sample in samples if prompts.fits(sample, config.seed)]
    if len(fitting) < len(samples):
        _logger.info("%d of %d chains of thought are too long", len(samples) - len(fitting), len(samples))
    if not fitting:
        raise DataError(
            "agent.reasoning_weight: expected 0, or training events that chains of thought can be made of: likes, "
            "after another one, of items with title or attributes that the stack nominates; got "
            + (f"{len(samples)} that are all too long" if samples else "none")
        )
    return [prompts.group(sample, config.seed) for sample in fitting]


def reasoning_of(config: AgentConfig) -> ChainConfig:
    """The settings of the chains of thought that an agent learns beside."""
    return ChainConfig(
        samples=config.reasoning_samples, history=config.history, direct=config.direct, ctr=0.0, timed=config.timed,
        wordings=config.reasoning_wordings, seed=config.seed,
    )  # fmt: skip


def calibrate_agent(
    agent: Agent,
    writer: SlateWriter,
    ranking: StackRanking,
    users: np.ndarray,
    position: np.ndarray,
    others: np.ndarray,
    k: int,
) -> np.ndarray:
    """Choose how far the agent is trusted.

    Args:
        agent, writer, ranking, users, position: as in :func:`train_agent`.
        others: users that it has not learnt from, bool ``[B]``.
        k: items of an answer.

    Returns:
        the gain in NDCG at ``k`` of asking the agent, for each of the other users.
    """
    rows = np.flatnonzero(others & (position >= 0))
    slates = [writer.write(ranking, users, row, target=position[row]) for row in rows.tolist()]
    logits = agent.logits(slates)
    trust = agent.calibrate(slates, logits)
    _logger.info("the agent's corrections count %.2f of what it has learnt", trust)
    gain = np.zeros(len(users))
    for row, slate, corrected in zip(rows.tolist(), slates, logits, strict=True):
        final = slate.offset + trust * (corrected - slate.offset)
        before, after = (ndcg(values, slate.target, k) for values in (slate.offset, final))
        gain[row] = after - before
    return gain[others]
