"""The agent that a configuration asks for, and what writes its prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reasonrec_fast.data import Catalog
from reasonrec_fast.models.reasonrec.agent import ResidualAgent
from reasonrec_fast.models.reasonrec.agent_base import Agent
from reasonrec_fast.models.reasonrec.config import ReasonRecConfig, TitleAgentConfig
from reasonrec_fast.models.reasonrec.observe import ItemFeatures
from reasonrec_fast.models.reasonrec.prompt import AgentPrompts, TitlePrompts, longest_prompt, longest_titles
from reasonrec_fast.models.reasonrec.title_agent import TitleAgent
from reasonrec_fast.prompts.tokens import TokenIds

Prompts = AgentPrompts | TitlePrompts


def new_agent(config: ReasonRecConfig, device: torch.device, kinds: Sequence[ItemFeatures] = ()) -> Agent:
    """One that has learnt nothing.

    Args:
        config: with an agent.
        device: where it lives.
        kinds: features of items that it reads beside their titles.
    """
    reader = config.reader
    assert reader is not None
    if isinstance(reader, TitleAgentConfig):
        return TitleAgent(config.seeded(reader), device=device)
    return ResidualAgent(config.seeded(reader), kinds, device=device)


def check_room(agent: Agent, tools: int) -> None:
    """Refuse prompts that a backbone cannot read.

    Args:
        agent: whose settings say how long they may be.
        tools: whose ranks may be told.

    Raises:
        ValueError: prompts longer than the backbone's positions.
    """
    if isinstance(agent, TitleAgent):
        names, room = "titles.history, titles.title_tokens", agent.max_length
        longest = longest_titles(agent.config, TokenIds(agent.tokenizer))
    else:
        assert isinstance(agent, ResidualAgent)
        names, room = "agent.history, agent.title_tokens", agent.ranker.model.backbone.max_length
        longest = longest_prompt(agent.config, tools)
    if longest > room:
        raise ValueError(
            f"{names}: expected prompts of at most {room} tokens, which the backbone reads; got up to {longest}"
        )


def prompts_of(agent: Agent, catalog: Catalog) -> Prompts:
    """What writes an agent's prompts about the items of a catalogue."""
    if isinstance(agent, TitleAgent):
        return TitlePrompts(catalog, agent.tokenizer, agent.config)
    assert isinstance(agent, ResidualAgent)
    observed = None if agent.observer is None else agent.observer.known
    return AgentPrompts(catalog, agent.tokenizer, agent.config, observed)
