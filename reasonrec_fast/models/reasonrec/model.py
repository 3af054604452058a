"""ReasonRec (arXiv 2606.28357): the stack answers, and a language model corrects it where that promises a gain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from reasonrec_fast.arrays import as_count
from reasonrec_fast.data import Catalog, DataError, Histories, Interactions
from reasonrec_fast.data.interactions import UNLABELLED
from reasonrec_fast.data.tables import TableLike, as_interactions
from reasonrec_fast.models.classical.base import ClassicalRecommender
from reasonrec_fast.models.classical.identifiers import is_text
from reasonrec_fast.models.classical.rows import checked_rows
from reasonrec_fast.models.classical.stack import Stack
from reasonrec_fast.models.classical.stack_config import StackRanking
from reasonrec_fast.models.classical.stack_folds import first_positives
from reasonrec_fast.models.classical.stack_tools import DEFAULT_TOOLS
from reasonrec_fast.models.optirag import OptiRAG
from reasonrec_fast.models.optirag.rows import fit_rows
from reasonrec_fast.models.reasonrec import storage, thinking
from reasonrec_fast.models.reasonrec.agent_base import Agent
from reasonrec_fast.models.reasonrec.agents import Prompts, check_room, new_agent, prompts_of
from reasonrec_fast.models.reasonrec.answers import Answers, descending
from reasonrec_fast.models.reasonrec.chain import Chain, ChainWriter, OnText
from reasonrec_fast.models.reasonrec.config import Policy, ReasonRecConfig, Task
from reasonrec_fast.models.reasonrec.instruction import ReasoningSample
from reasonrec_fast.models.reasonrec.learning import (
    SlateWriter,
    calibrate_agent,
    positions_of,
    reasoning_of,
    train_agent,
)
from reasonrec_fast.models.reasonrec.observe import features_of
from reasonrec_fast.models.reasonrec.prompt import CoLikes
from reasonrec_fast.models.reasonrec.reasons import Reason, reasons_of
from reasonrec_fast.models.reasonrec.router import Decision, Router
from reasonrec_fast.models.reasonrec.routing import CONSULT, STACK
from reasonrec_fast.training.curriculum import EvidenceHorizon, Horizon
from reasonrec_fast.training.progress import Progress, named_part


class ReasonRec(ClassicalRecommender):
    """Recommends by a stack of classical models, and asks a language model where a gain is predicted.

    Make one with ``ReasonRec(config).fit(events, split.train, split.validation)`` or :meth:`from_pretrained`.

    The stack (:class:`~reasonrec_fast.models.classical.stack.Stack`) nominates candidates and ranks them. The agent
    reads the user and the stack's best candidates in words, and adds what its head has learnt to the stack's logits; no
    other item comes in. The router decides whether it is asked; who is not asked for costs no token.

    The paper's agent is a 7B model that is asked unless the query is of low risk. Here it starts equal to the stack,
    learns from validation events of some of the users (of training events the stack's trees know the answer, and are
    too sure), and the other users choose how far it is trusted.

    Args:
        config: settings.
        device: of tools and agent; by default the GPU where there is one.

    Raises:
        ValueError: a device that is not available.
    """

    config_type = ReasonRecConfig
    config: ReasonRecConfig

    def __init__(self, config: Any = None, *, device: torch.device | str | None = None) -> None:
        super().__init__(config, device=device)
        self.stack = Stack(self.config.seeded(self.config.stack), device=self.device)
        self.agent: Agent | None = None
        self.ctr: OptiRAG | None = None
        self.chain: ChainWriter | None = None
        self.router = Router()
        self.horizon: EvidenceHorizon | None = None
        self.catalog = Catalog((), ())
        self._prompts: Prompts | None = None
        self._likes: CoLikes | None = None

    # Fitting

    def build_parameters(self, sizes: dict[str, int]) -> None:
        """It has none of its own: stack and agent have theirs."""

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        self.stack.check_events(data, train)
        if self.config.chain is not None:
            thinking.is_timed(data, self.config.chain)
        if self.config.agent is not None and self.config.agent.reasoning_weight:
            thinking.is_timed(data, self.config.agent)
        if self.config.ctr is not None and len(labels := np.unique(data.labels[train])) < 2:
            raise DataError(
                f"train: expected likes and dislikes, as the configuration has a model of clicks (ctr); got labels "
                f"{labels.tolist()}"
            )

    def fit(
        self,
        data: Interactions | TableLike,
        train: np.ndarray | None = None,
        validation: np.ndarray | None = None,
        *,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> ReasonRec:
        """Fit the stack, train the agent, calibrate the router; then the writer of chains and the model of clicks,
        where there are any.

        Args:
            data: the events, or a DataFrame or a file of them.
            train, validation: rows, ascending. An agent needs validation: the first positive event of each user in it
                is what it learns from and is calibrated on.
            checkpoint: file of the training state; a run that was killed goes on from it and from what lies beside it
                (``.stack``, ``.stack.state``, ``.chain``, ``.ctr``). It stays there until the model is saved:
                :func:`~reasonrec_fast.models.reasonrec.storage.remove_checkpoints` removes it.
            progress: called for the parts ``"stack"``, ``"agent"``, ``"chain"`` and ``"ctr"``.

        Raises:
            DataError: rows that nothing can be learnt from, or an agent or a model of clicks without validation.
            ValueError: a checkpoint of another configuration or of other events, or a part without likes or without
                dislikes for the model of clicks.
        """
        data = as_interactions(data)
        if self.config.reader is not None and validation is None:
            raise DataError("validation: expected rows, which the agent learns from; got None")
        rows = np.flatnonzero(data.labels != UNLABELLED) if train is None else np.asarray(train)
        # Refused before the stack is fitted.
        clicks = None if self.config.ctr is None else _clicks(data, rows, validation)
        super().fit(data, train, validation, checkpoint=checkpoint, progress=progress)
        if self.config.chain is not None:
            assert self.horizon is not None
            self.chain = ChainWriter(self.config.seeded(self.config.chain), device=self.device)
            thinking.fit_writer(
                self.chain, self.stack, self.horizon, data, rows,
                checkpoint=None if checkpoint is None else f"{checkpoint}.chain",
                progress=named_part(progress, "chain"),
            )  # fmt: skip
        if clicks is not None:
            assert self.config.ctr is not None
            self.ctr = OptiRAG(self.config.seeded(self.config.ctr), device=self.device).fit(
                data, *clicks, checkpoint=None if checkpoint is None else f"{checkpoint}.ctr",
                progress=named_part(progress, "ctr"),
            )  # fmt: skip
        return self

    def fit_rows(
        self,
        data: Interactions,
        train: np.ndarray,
        validation: np.ndarray | None,
        *,
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        held_out = np.zeros(0, dtype=np.int64) if validation is None else first_positives(data, validation)
        if self.config.reader is not None and not len(held_out):
            raise DataError("validation: expected positive events, which the agent learns from; got none")
        catalog = Catalog(data.catalog.ids, data.catalog.titles, data.catalog.attributes)
        agent = None
        # What cannot be read is refused before the stack is fitted, unless it reads the stack's vectors.
        if self.config.reader is not None and not (self.config.agent is not None and self.config.agent.item_vectors):
            agent = self._new_agent(catalog)
        kept = None if checkpoint is None else Path(f"{checkpoint}.stack")
        self.stack = storage.fitted_stack(
            self.stack, data, train, validation, kept, keep=self._more_follows, progress=named_part(progress, "stack")
        )
        liked = self.stack.histories
        self.horizon = EvidenceHorizon(liked.lengths[liked.lengths > 0], self._horizon_kind)
        self.catalog, self._prompts = catalog, None
        self.agent = self._new_agent(catalog) if self.config.reader is not None and agent is None else agent
        self.build({"users": data.num_users, "items": data.num_items})
        self.set_histories(liked, seen=self.stack.seen)
        if len(held_out):
            self._learn(data, train, held_out, checkpoint, named_part(progress, "agent"))

    @property
    def _horizon_kind(self) -> Horizon:
        return "quantile" if self.config.reader is None else self.config.reader.horizon

    @property
    def _more_follows(self) -> bool:
        """Whether something is trained after the stack."""
        return any(part is not None for part in (self.config.reader, self.config.chain, self.config.ctr))

    def _new_agent(self, catalog: Catalog) -> Agent:
        """One that has learnt nothing."""
        config, kinds = self.config.agent, []
        if config is not None:
            vectors = self.stack.toolbox.vectors if config.item_vectors else None
            kinds = features_of(config, catalog, vectors, self.device)
        agent = new_agent(self.config, self.device, kinds)
        check_room(agent, max(len(self.stack.config.specs), len(DEFAULT_TOOLS)) + len(self.stack.functions))
        return agent

    def _learn(
        self,
        data: Interactions,
        train: np.ndarray,
        rows: np.ndarray,
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        """Train the agent on the events of some users, and calibrate it and the router on those of the others."""
        config, users, targets = self.config, data.users[rows], data.items[rows]
        ranking, horizons = self.stack.rank(users, self.candidates, strict=True), self.horizons(users)
        position = positions_of(ranking, targets)
        learning = np.zeros(len(users), dtype=bool)
        gain = np.zeros(len(users))
        if self.agent is not None:
            count = round(config.agent_share * len(users))
            learning[np.random.default_rng(config.seed).permutation(len(users))[:count]] = True
            identity = {"stack": self.stack.training_digest, "settings": config.to_dict()}
            samples: list[ReasoningSample] = []
            if config.agent is not None and config.agent.reasoning_weight:
                settings = reasoning_of(config.seeded(config.agent))
                samples, _ = thinking.training_samples(self.stack, data, train, settings)
            train_agent(
                self.agent, self._slates, ranking, users, position, learning, horizons=horizons,
                histories=self.histories, samples=samples, fingerprint=identity, checkpoint=checkpoint,
                progress=progress,
            )  # fmt: skip
            gain = calibrate_agent(self.agent, self._slates, ranking, users, position, ~learning, config.k)
        others = ~learning
        self.router = Router.fit(
            _rows(ranking, others), position[others], gain, horizons[others], config.k, seed=config.seed
        )

    # Answering

    @property
    def candidates(self) -> int:
        """Items of a ranking that is decided about: those that the agent reads, and more than ``k`` for the
        confidence."""
        return max(self.config.k + 1, 0 if self.config.reader is None else self.config.reader.candidates)

    def set_histories(self, histories: Histories, *, seen: Histories | None = None) -> ReasonRec:
        super().set_histories(histories, seen=seen)
        self._likes = None
        self.stack.set_histories(self.histories, seen=self.seen)
        if self.agent is not None:
            self._prompts = self._prompts or prompts_of(self.agent, self.catalog)
            self._prompts.set_histories(self.histories, self._co_likes if self.agent.reads_likes else None)
        return self

    @property
    def _co_likes(self) -> CoLikes:
        """Who liked what, from everybody's histories; counted when it is first asked for."""
        if self._likes is None:
            self._likes = CoLikes(self.histories, self.sizes["items"])
        return self._likes

    def horizons(self, users: np.ndarray) -> np.ndarray:
        """Evidence horizons of users by their present histories, float64 ``[B]``."""
        assert self.horizon is not None
        return self.horizon.of(self.histories.lengths[users])

    def recommend(  # type: ignore[override]
        self,
        users: Any,
        k: int,
        *,
        exclude: Histories | None = None,
        task: Task = "sequential",
        policy: Policy | None = None,
        budget: float | None = None,
        progress: Progress | None = None,
    ) -> Answers:
        """The top ``k`` items of each user, without those that the user has had. A user's answer depends on that user
        alone: a budget is a threshold that was found on validation users.

        Args:
            users: indices or identifiers (text), ``[B]``.
            k: how many, at least 0. Beyond the agent's candidates the order is the stack's.
            exclude: items to leave out, of all users; those they have had by default.
            task: ``"direct"`` describes users to the agent by their tastes and names no history.
            policy: who answers; by default that of the configuration.
            budget: share of queries for the agent; by default that of the configuration.
            progress: called with how many candidates the agent has read.

        Raises:
            DataError: a user that the model does not know (with the row).
            ValueError: a policy that does not exist, a budget outside [0, 1], or a task of another name.
        """
        by_identifier = is_text(users)
        users, k = self.user_indices(users), as_count(k, "k", error=DataError)
        _check_task(task)
        ranking = self.stack.rank(users, max(min(k, self.sizes["items"]), self.candidates), exclude=exclude)
        horizons = self.horizons(users)
        decided = self.decide(ranking, horizons, policy, budget)
        items, logits = ranking.items.copy(), ranking.logits.copy()
        asked = np.flatnonzero(decided.destination != STACK)
        if len(asked):
            assert self.agent is not None
            slates = [
                self._slates.write(ranking, users, row, task, consult=bool(decided.destination[row] == CONSULT))
                for row in asked.tolist()
            ]
            for row, corrected in zip(asked.tolist(), self.agent.logits(slates, progress), strict=True):
                order = np.argsort(-corrected, kind="stable")
                shift = np.logaddexp.reduce(logits[row, : len(order)]) - np.logaddexp.reduce(corrected)
                items[row, : len(order)] = items[row, order]
                logits[row, : len(order)] = corrected[order] + shift
        missing = [(0, 0), (0, max(k - items.shape[1], 0))]
        items, logits = np.pad(items, missing, constant_values=-1), np.pad(logits, missing, constant_values=-np.inf)
        return Answers(
            descending(logits[:, :k]), self._items.named(items[:, :k]) if by_identifier else items[:, :k],
            decided.destination, decided.confidence, horizons, decided.gain, ranking.left_out,
        )  # fmt: skip

    def decide(
        self, ranking: StackRanking, horizons: np.ndarray, policy: Policy | None = None, budget: float | None = None
    ) -> Decision:
        """Who answers users whom the stack has ranked.

        Args:
            ranking: with at least as many columns as :attr:`candidates`.
            horizons: evidence horizons of the users (:meth:`horizons`), ``[B]``.
            policy, budget: as in :meth:`recommend`.
        """
        policy = self.config.policy if policy is None else policy
        budget = self.config.budget if budget is None else budget
        # An agent whose corrections count nothing would give the stack's answer, and costs.
        trusted = self.agent is not None and self.agent.trust > 0
        decision = self.router.decide(ranking, horizons, policy, budget, has_agent=trusted)
        # With one candidate or none there is nothing to put in order.
        decision.destination[~(ranking.items[:, 1:2] >= 0).any(1)] = STACK
        return decision

    def think(
        self,
        users: Any,
        n: int | None = None,
        *,
        k: int | None = None,
        task: Task = "sequential",
        seed: int = 0,
        on_text: OnText | None = None,
    ) -> list[Chain]:
        """Chains of thought on which of the stack's best candidates each user wants next.

        They change no recommendation. The question tells each candidate's attributes and what other users' likes say
        for it; what a chain makes of that is the language model's own (:meth:`explain` looks up).

        Args:
            users: indices or identifiers (text), ``[B]``.
            n: chains of a user; by default those of the configuration.
            k: candidates that the question names; by default those of the configuration.
            task: ``"direct"`` describes users by their tastes.
            seed: of the draws.
            on_text: receives the chains while they are written: row of the user, chain, text.

        Returns:
            ``n`` chains of the first user, then those of the second, and so on; empty, unfinished ones for a user about
            whom nothing can be asked (no history, or items without title and attributes).

        Raises:
            DataError: a model that was fitted without ``chain``, or a user that it does not know (with the row).
            ValueError: a task of another name, or as :meth:`ChainWriter.write
                <reasonrec_fast.models.reasonrec.chain.ChainWriter.write>`.
        """
        if self.chain is None:
            raise DataError("model: expected one that was fitted with chain in its configuration; got one without")
        by_identifier, config = is_text(users), self.chain.config
        users, k = self.user_indices(users), as_count(config.candidates if k is None else k, "k", 1, error=DataError)
        _check_task(task)
        items = self.stack.rank(users, k).items
        histories = [self.histories.of_user(user) for user in users.tolist()]
        chains = thinking.think(
            self.chain, self.catalog, self._co_likes, users.tolist(), histories, items, task, n, seed, on_text
        )
        return thinking.named(chains, self.known_items.ids) if by_identifier else chains

    def explain(self, users: Any, items: Any) -> list[Reason]:
        """Why each item may suit its user, out of the data: tastes, what others liked, what each tool says.

        Nothing in it is written by a language model, so nothing is made up.

        Args:
            users, items: indices or identifiers (text), ``[N]`` both.

        Raises:
            DataError: a user or an item that the model does not know (with the row).
        """
        users, items = self.pairs(users, items)
        return reasons_of(self.stack, self.catalog, self._co_likes, users, items)

    def predict_ctr(self, data: Interactions | TableLike, rows: np.ndarray | None = None) -> np.ndarray:
        """Probability that each event is a like, as of its own moment, float64 ``[N]``
        (:meth:`~reasonrec_fast.models.optirag.OptiRAG.predict_rows`): boosted evidence answers at depth 0, the language
        model where a gain is predicted.

        Args:
            data: requests (rows without label) and what their users did before; users and items may be new.
            rows: which rows are requests; all unlabelled ones by default.

        Raises:
            DataError: a model that was fitted without ``ctr``.
        """
        if self.ctr is None:
            raise DataError("model: expected one that was fitted with ctr in its configuration; got one without")
        return self.ctr.predict_rows(as_interactions(data), rows).probability.astype(np.float64)

    def scores(self, users: np.ndarray) -> torch.Tensor:
        """The stack's scores of all items, ``[B, I]``; the agent reads candidates alone (:meth:`recommend`)."""
        return self.stack.scores(users)

    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The stack's logits of pairs, float32 ``[N]``, of any items."""
        users, items = self.pairs(users, items)
        return self.stack.score(users, items)

    def score_events(self, data: Interactions, rows: np.ndarray) -> np.ndarray:
        """Of the model of clicks, where there is one (logits as of the events' own moments); else the stack's."""
        if self.ctr is not None:
            return self.ctr.score_events(data, rows)
        return super().score_events(data, rows)

    @property
    def _slates(self) -> SlateWriter:
        assert self._prompts is not None and self.config.reader is not None
        return SlateWriter(self.stack, self._prompts, self.config.reader.candidates)

    # Moving, saving, loading

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ReasonRec:
        super()._apply(fn, recurse)
        for part in (self.agent, self.ctr, self.chain):
            if part is not None and part.device != self.device:
                part.to(self.device)
        return self

    def _write_more(self, folder: Path) -> None:
        storage.write(folder, self.stack, self.agent, self.ctr, self.chain, self.router, self.horizon, self.catalog)

    def _restore(self, folder: Path, sizes: dict[str, int]) -> None:
        parts = storage.read(folder, self.config, self.device)
        self.stack, self.agent, self.ctr, self.chain, self.router, self.horizon, self.catalog = parts
        self.build(sizes)


def _clicks(data: Interactions, train: np.ndarray, validation: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The rows that the model of clicks learns from: those with a label."""
    if validation is None:
        raise DataError("validation: expected rows, which the model of clicks (ctr) is stopped by; got None")
    learnt, held_out = checked_rows(data, train, validation, labels=True)
    assert held_out is not None
    found = fit_rows(data, learnt, held_out[data.labels[held_out] != UNLABELLED], 0)
    return found.train, found.validation


def _check_task(task: str) -> None:
    if task not in get_args(Task):
        raise ValueError(f"task: expected 'sequential' or 'direct'; got {task!r}")


def _rows(ranking: StackRanking, rows: np.ndarray) -> StackRanking:
    arrays = {name: getattr(ranking, name)[rows] for name in StackRanking._fields[:-1]}
    return StackRanking(**arrays, left_out=ranking.left_out)
