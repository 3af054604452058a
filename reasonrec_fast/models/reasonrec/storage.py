"""A ReasonRec model as a folder: its parts in folders of their own, each with its kind's files."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from reasonrec_fast.data import Catalog, Interactions
from reasonrec_fast.files import read_json, write_json
from reasonrec_fast.models.classical.rows import digest_of_rows
from reasonrec_fast.models.classical.stack import Stack
from reasonrec_fast.models.optirag import OptiRAG
from reasonrec_fast.models.reasonrec.agent_base import Agent
from reasonrec_fast.models.reasonrec.agents import new_agent
from reasonrec_fast.models.reasonrec.chain import ChainWriter
from reasonrec_fast.models.reasonrec.config import ReasonRecConfig, TitleAgentConfig
from reasonrec_fast.models.reasonrec.router import Router
from reasonrec_fast.models.reasonrec.title_agent import WEIGHTS
from reasonrec_fast.training.curriculum import EvidenceHorizon
from reasonrec_fast.training.progress import Progress

PARTS = "reasonrec.json"
_STACK, _AGENT, _CTR, _CHAIN = "stack", "agent", "ctr", "chain"
Parts = tuple[Stack, Agent | None, OptiRAG | None, ChainWriter | None, Router, EvidenceHorizon | None, Catalog]


def write(
    folder: Path,
    stack: Stack,
    agent: Agent | None,
    ctr: OptiRAG | None,
    chain: ChainWriter | None,
    router: Router,
    horizon: EvidenceHorizon | None,
    catalog: Catalog,
) -> None:
    """Write the parts into an existing folder."""
    stack.save_pretrained(folder / _STACK)
    if agent is not None:
        (folder / _AGENT).mkdir()
        agent.save(folder / _AGENT)
    if ctr is not None:
        ctr.save_pretrained(folder / _CTR)
    if chain is not None:
        chain.save_pretrained(folder / _CHAIN)
    stored = {
        "events": stack.training_digest,
        "agent": agent is not None,
        "backbone": None if agent is None else agent.backbone_digest,
        "ctr": ctr is not None,
        "chain": chain is not None,
        "router": router.save(folder),
        "horizon": None if horizon is None else {"counts": horizon.counts.tolist(), "kind": horizon.kind},
        "catalog": {
            "ids": list(catalog.ids),
            "titles": list(catalog.titles),
            "attributes": {name: [list(values) for values in column] for name, column in catalog.attributes.items()},
        },
    }
    write_json(folder / PARTS, stored)


def read(folder: Path, config: ReasonRecConfig, device: torch.device) -> Parts:
    """Read what :func:`write` wrote.

    Raises:
        ValueError: parts that the configuration does not have, of another training or of another backbone.
    """
    stored = read_json(folder / PARTS)
    reader, agent = config.reader, None
    if stored["agent"]:
        if reader is None:
            raise ValueError(f"{folder}: expected no agent, as the configuration has none; got one")
        of_titles = (folder / _AGENT / WEIGHTS).is_file()
        if of_titles != isinstance(reader, TitleAgentConfig):
            named = ("agent", "titles")
            raise ValueError(
                f"{folder}: expected the agent of the configuration's {named[not of_titles]}; got one of "
                f"{named[of_titles]}"
            )
        agent = new_agent(config, device)
        if stored.get("backbone", agent.backbone_digest) != agent.backbone_digest:
            raise ValueError(
                f"{folder}: expected the language model that the agent was trained with; {reader.backbone} has "
                "other weights"
            )
        agent.restore(folder / _AGENT)
    horizon, known = stored["horizon"], stored["catalog"]
    stack = Stack.from_pretrained(folder / _STACK, device=device)
    same_events = stored.get("events", stack.training_digest) == stack.training_digest
    if not same_events or len(known["ids"]) != stack.sizes["items"]:
        raise ValueError(f"{folder}: expected a stack and a catalogue of the same training; got those of two")
    attributes = {name: [tuple(values) for values in column] for name, column in known["attributes"].items()}
    return (
        stack,
        agent,
        OptiRAG.from_pretrained(folder / _CTR, device=device) if stored["ctr"] else None,
        ChainWriter.from_pretrained(folder / _CHAIN, device=device) if stored.get("chain") else None,
        Router.load(folder, stored["router"]),
        None if horizon is None else EvidenceHorizon(horizon["counts"], horizon["kind"]),
        Catalog(known["ids"], known["titles"], attributes),
    )


def fitted_stack(
    stack: Stack,
    data: Interactions,
    train: np.ndarray,
    validation: np.ndarray | None,
    kept: Path | None,
    *,
    keep: bool,
    progress: Progress | None,
) -> Stack:
    """The stack, fitted; or the one that a run which was killed later had fitted.

    Args:
        stack: to fit, with its functions.
        data, train, validation: the events, and the rows of the parts.
        kept: folder of a killed run's stack; None for a run without a checkpoint.
        keep: whether something is trained after it, so that it is written there.
        progress: of the fitting.

    Raises:
        ValueError: a kept stack of another configuration or of other events.
    """
    if kept is not None and (kept / "config.json").is_file():
        known = Stack.from_pretrained(kept, device=stack.device)
        same = asdict(known.config) == asdict(stack.config)
        if not same or known.training_digest != digest_of_rows(data, train, validation):
            raise ValueError(
                f"checkpoint: expected a stack of this configuration and these events; {kept} is of another run"
            )
        for name, function in stack.functions.items():  # which are not saved
            known.add_tool(name, function)
        return known
    state = None if kept is None else kept.with_name(f"{kept.name}.state")
    stack.fit(data, train, validation, checkpoint=state, progress=progress)
    if kept is not None and keep:
        stack.save_pretrained(kept)
    return stack


def remove_checkpoints(checkpoint: Path) -> None:
    """Remove the state of a training whose model is saved, whatever part of it there is; nothing else that begins
    alike."""
    for part in ("", ".stack", ".stack.state", ".stack.state.tools", ".chain", ".ctr"):
        path = checkpoint.with_name(checkpoint.name + part)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
