"""Chains of thought over a stack's candidates: samples of the training part to learn from, and questions of users."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from reasonrec_fast.data import Catalog, DataError, Histories, Interactions
from reasonrec_fast.models.classical.stack import Stack
from reasonrec_fast.models.reasonrec.chain import Chain, ChainWriter, OnText
from reasonrec_fast.models.reasonrec.config import AgentConfig, ChainConfig, Task
from reasonrec_fast.models.reasonrec.instruction import ReasoningConverter, ReasoningSample
from reasonrec_fast.models.reasonrec.prompt import CoLikes
from reasonrec_fast.models.reasonrec.questions import Question, mixed_order, question_of
from reasonrec_fast.models.reasonrec.rationale import Descriptions, Rationales, others_liked
from reasonrec_fast.training.curriculum import CurriculumSampler, EvidenceHorizon
from reasonrec_fast.training.progress import Progress

_logger = logging.getLogger("reasonrec_fast")
_AT_ONCE = 256  # events whose candidates are ranked together


def fit_writer(
    writer: ChainWriter,
    stack: Stack,
    horizon: EvidenceHorizon,
    data: Interactions,
    train: np.ndarray,
    *,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Teach a writer by samples of the training part (:func:`training_samples`).

    Args:
        writer: learns.
        stack: fitted on the training part; ranks the candidates.
        horizon: of a user by the length of the history.
        data, train: the events, and the rows of the training part.
        checkpoint: file of the training state.
        progress: called after every step.

    Raises:
        DataError: no sample.
    """
    config = writer.config
    samples, lengths = training_samples(stack, data, train, config)
    fitting = np.array([writer.fits(sample) for sample in samples], dtype=bool)
    if not fitting.all():
        _logger.info("%d of %d samples have questions or chains that are too long", (~fitting).sum(), len(samples))
    kept = [sample for sample, fits in zip(samples, fitting, strict=True) if fits]
    if not kept:
        raise DataError(
            "train: expected a like of an item with title or attributes, after another one, that the stack has among "
            f"its {config.candidates} best, to learn chains of; got none in {len(train)} rows"
        )
    sampler = None
    if config.curriculum is not None:
        counts = np.bincount(data.items[train], minlength=data.num_items)
        targets = np.array([sample.item for sample in kept])
        sampler = CurriculumSampler(config.curriculum, horizon.of(lengths[fitting]), counts[targets])
    fingerprint = {"stack": stack.training_digest, "chain": asdict(config)}
    writer.fit(kept, sampler=sampler, checkpoint=checkpoint, fingerprint=fingerprint, progress=progress)


def training_samples(
    stack: Stack, data: Interactions, train: np.ndarray, config: ChainConfig
) -> tuple[list[ReasoningSample], np.ndarray]:
    """Samples of events of the training part, in time order, and how many items each one's user had liked before.

    Questions and chains hold nothing later than their event. Which other items are candidates is the stack's choice: as
    it has learnt all training events, it ranks their targets too high, so its order is not shown.

    Args:
        stack: fitted; its histories are the same afterwards.
        data, train: the events, and the rows of the training part.
        config: how many samples, of which tasks, with how many candidates.
    """
    converter = ReasoningConverter(data, train, timed=is_timed(data, config), history=config.history)
    facts, generator = converter.rationales, np.random.default_rng((config.seed, 3))
    train = np.sort(train)

    def history(row: int) -> np.ndarray:
        return facts.liked(int(data.users[row]), int(data.timestamps[row]))

    liked = train[data.labels[train] == 1]
    first_like = np.full(data.num_users, np.iinfo(np.int64).max)
    np.minimum.at(first_like, data.users[liked], data.timestamps[liked])
    with_history = data.timestamps[train] > first_like[data.users[train]]
    likes, labelled = train[(data.labels[train] == 1) & with_history], train[with_history & (data.labels[train] >= 0)]
    share = config.ctr if (data.labels[train] == 0).any() else 0.0
    found: list[tuple[int, ReasoningSample | None]] = []
    for row in generator.permutation(labelled)[: round(share * config.samples)].tolist():
        found.append((row, converter.ctr(row)))
    wanted, likes = config.samples - len(found), generator.permutation(likes)
    is_direct = generator.random(len(likes)) < config.direct / max(1 - share, 1e-9)
    choices: list[tuple[int, ReasoningSample | None]] = []
    for first in range(0, len(likes), _AT_ONCE):  # until there are enough whose target is a candidate
        rows = likes[first : first + _AT_ONCE]
        ranked = _candidates_before(stack, data, facts, rows, config.candidates)
        for number, (row, candidates) in enumerate(zip(rows.tolist(), ranked, strict=True), first):
            if int(data.items[row]) in candidates:
                named = mixed_order(facts, history(row), candidates)
                write = converter.direct if is_direct[number] else converter.sequential
                choices.append((row, write(row, named)))
        if len(choices) >= wanted:
            break
    known = [(row, sample) for row, sample in sorted(found + choices[:wanted], key=_row) if sample is not None]
    return [sample for _, sample in known], np.array([len(history(row)) for row, _ in known], dtype=np.int64)


def is_timed(data: Interactions, config: ChainConfig | AgentConfig) -> bool:
    """Whether moments of different users can be compared.

    Raises:
        DataError: moments of a counter, about which the configuration says nothing.
    """
    if config.timed is None and data.time_unit == "count":
        part = "chain" if isinstance(config, ChainConfig) else "agent"
        raise DataError(
            f"{part}.timed: expected true or false, as the events' moments are a counter: true where it counts all "
            "events, false where it counts those of each user"
        )
    return True if config.timed is None else config.timed


def _row(pair: tuple[int, object]) -> int:
    return pair[0]


def _candidates_before(
    stack: Stack, data: Interactions, facts: Rationales, rows: np.ndarray, count: int
) -> list[list[int]]:
    """The stack's best for the user of each event as of its moment, without what the user had by then."""
    before = [facts.history(int(data.users[row]), int(data.timestamps[row])) for row in rows.tolist()]
    liked = Histories.from_lists([data.items[events[data.labels[events] == 1]] for events in before])
    seen = Histories.from_lists([data.items[events[data.labels[events] >= 0]] for events in before])
    kept = stack.histories, stack.seen
    try:
        stack.set_histories(liked, seen=seen)
        items = stack.rank(np.arange(len(rows)), count).items
    finally:
        stack.set_histories(kept[0], seen=kept[1])
    return [[item for item in row if item >= 0] for row in items.tolist()]


def user_questions(
    catalog: Catalog,
    likes: CoLikes,
    users: Sequence[int],
    histories: Sequence[np.ndarray],
    candidates: Sequence[np.ndarray],
    task: Task,
    most: int,
) -> list[Question | None]:
    """A question about each user's next item; None where history or candidates have no words.

    Args:
        catalog: titles and attributes.
        likes: of all users, which the question tells beside the candidates.
        users: indices.
        histories: liked items of each user, oldest first.
        candidates: of each user.
        task: ``"direct"`` describes users by their tastes.
        most: latest items of a history that are named.
    """
    words = Descriptions(catalog)

    def told(user: int, history: np.ndarray, item: int) -> str | None:
        best = likes.best(user, history.tolist(), item)
        known = None if best is None else words.title(history[len(history) - 1 - best[0]])
        return None if best is None or known is None else others_liked(known, *best[1:])

    return [
        question_of(
            words, task, history, mixed_order(words, history, items), key="", most=most,
            told=partial(told, user, history),
        )
        for user, history, items in zip(users, histories, candidates, strict=True)
    ]  # fmt: skip


def think(
    writer: ChainWriter,
    catalog: Catalog,
    likes: CoLikes,
    users: Sequence[int],
    histories: Sequence[np.ndarray],
    items: np.ndarray,
    task: Task,
    n: int | None,
    seed: int,
    on_text: OnText | None,
) -> list[Chain]:
    """Chains of users as :meth:`ChainWriter.write` gives them; empty ones where nothing can be asked.

    Args:
        writer: of the chains.
        catalog, likes, users, histories, task: as in :func:`user_questions`.
        items: candidates of each user, -1 for none, int64 ``[B, k]``.
        n, seed, on_text: as in :meth:`ChainWriter.write`.
    """
    candidates = [row[row >= 0] for row in items]
    questions = user_questions(catalog, likes, users, histories, candidates, task, writer.config.history)
    rows = [row for row, question in enumerate(questions) if question is not None]
    n = writer.config.chains if n is None else n

    def on_query(number: int, chain: int, text: str) -> None:
        assert on_text is not None
        on_text(rows[number], chain, text)

    asked = [question for question in questions if question is not None]
    written = writer.write(asked, n, seed, on_text=None if on_text is None else on_query)
    chains = [Chain("")] * (n * len(questions))
    for number, row in enumerate(rows):
        chains[row * n : (row + 1) * n] = written[number * n : (number + 1) * n]
    return chains


def named(chains: Sequence[Chain], identifiers: Sequence[str]) -> list[Chain]:
    """Chains whose items are identifiers."""
    return [chain if chain.item is None else replace(chain, item=identifiers[int(chain.item)]) for chain in chains]
