"""The demo's second part: ReasonRec answers a few MovieLens users, with reasons and chains of thought."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from reasonrec_fast.arrays import as_count
from reasonrec_fast.data import load_movielens_small, split_by_time
from reasonrec_fast.experiments.config import FOLDER
from reasonrec_fast.files import read_json
from reasonrec_fast.models.reasonrec import ChainWriter, ReasonRec, ReasonRecConfig
from reasonrec_fast.models.reasonrec.packaged import MOVIELENS_CHAINS
from reasonrec_fast.models.reasonrec.routing import DESTINATIONS
from reasonrec_fast.prompts import item_title

SETTINGS = FOLDER / "movielens-chains.json"
"""What the packaged chains were trained with."""


@dataclass(frozen=True)
class UserAnswer:
    """What the model says to a user.

    Attributes:
        user: identifier.
        liked: titles of the latest likes, the last one first.
        films: titles of the answer, the best first.
        reasons: why each film may suit the user, counted from the data.
        answered_by: ``"stack"``, or the agent.
        confidence: that the next like is among the five best.
        horizon: evidence horizon; near 1 is cold.
        chain: what the language model writes about the first films; empty where nothing can be asked.
        chain_film: title that the chain ends in; None where it ends in no candidate.
        next_film: title of what the user liked next, which nothing here was told.
    """

    user: str
    liked: list[str]
    films: list[str]
    reasons: list[str]
    answered_by: str
    confidence: float
    horizon: float
    chain: str
    chain_film: str | None
    next_film: str


def run_reasonrec_demo(
    *,
    users: int = 3,
    k: int = 5,
    seed: int = 0,
    device: torch.device | str | None = None,
    say: Callable[[str], None] = print,
) -> list[UserAnswer]:
    """Fit the stack on MovieLens latest-small without each user's last two events, and answer some users before the
    last.

    Args:
        users: how many, drawn among those whose last event is a like.
        k: films of an answer.
        seed: of the draw.
        device: of all models; by default the GPU if there is one.
        say: called with each line of progress.

    Raises:
        ValueError: a device that does not exist, or users or films that are fewer than none.
    """
    users, k = as_count(users, "users"), as_count(k, "k")
    data = load_movielens_small()
    split = split_by_time(data, "leave_one_out")
    config = replace(ReasonRecConfig.from_dict(read_json(SETTINGS), str(SETTINGS)), chain=None)
    model = ReasonRec(config, device=device)
    say(f"ReasonRec: fitting {len(config.stack.specs)} classical models and the trees on them")
    model.fit(data, split.train, split.validation)
    model.set_histories_from(data, np.sort(np.concatenate([split.train, split.validation])))
    if MOVIELENS_CHAINS.is_dir():
        model.chain = ChainWriter.from_pretrained(MOVIELENS_CHAINS, device=model.device)
    else:
        say("Chains of thought are left out: their adapters are not in this checkout (make train-demo makes them)")
    likes = split.test[data.labels[split.test] == 1]
    rows = np.random.default_rng(seed).permutation(likes)[:users]
    chosen = data.users[rows]
    answers = model.recommend(chosen, k)
    chains = [] if model.chain is None else model.think(chosen, 1)

    def title(item: int) -> str:
        return item_title(data.catalog, item) or "a film without a title"

    found = []
    for number, (row, user) in enumerate(zip(rows.tolist(), chosen.tolist(), strict=True)):
        items = answers.items[number][answers.items[number] >= 0]
        chain = chains[number] if chains else None
        found.append(
            UserAnswer(
                user=data.user_ids[user],
                liked=[title(item) for item in model.histories.of_user(user)[::-1][:5].tolist()],
                films=[title(item) for item in items.tolist()],
                reasons=[reason.text for reason in model.explain(np.full(len(items), user), items)],
                answered_by=DESTINATIONS[answers.answered_by[number]],
                confidence=float(answers.confidence[number]),
                horizon=float(answers.horizon[number]),
                chain="" if chain is None else chain.text,
                chain_film=None if chain is None or chain.item is None else title(int(chain.item)),
                next_film=title(int(data.items[row])),
            )
        )
    return found
