"""A small training run, for test_loop.py: in this process, in a child that is killed, or in several by
``ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 tests/training/loop_run.py FOLDER --accelerate``, which prints
what came of it as a line of JSON."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import time
from pathlib import Path
from typing import Any

import torch

from reasonrec_fast.training.loop import StepLoop
from reasonrec_fast.training.processes import gathered
from reasonrec_fast.training.schedules import warmup_cosine

STEPS = 12


def train(folder: Path, *, accelerated: bool = False, seconds: float = 0.0) -> dict[str, Any]:
    """Train on three micro-batches a step, the last of the greatest weight.

    Args:
        folder: of the checkpoint.
        accelerated: with an Accelerator, on as many processes as were launched.
        seconds: that a micro-batch takes at least.
    """
    accelerator = None
    if accelerated:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 64), torch.nn.Dropout(0.3), torch.nn.Linear(64, 1)).double()
    module.register_parameter("unused", torch.nn.Parameter(torch.ones(3, dtype=torch.float64)))  # has no gradient
    x = torch.randn(90, 6, dtype=torch.float64)
    computed, losses = set(), []

    def loss(part: int) -> torch.Tensor:
        computed.add(part)
        time.sleep(seconds)
        rows = x[part * 30 : (part + 1) * 30]
        return (module[2](module[1](module[0](rows))) - rows.sum(1, keepdim=True)).square().mean()

    loop = StepLoop(
        module, torch.optim.AdamW(module.parameters(), lr=0.01), seed=3, clip=1.0, schedule=warmup_cosine(STEPS),
        checkpoint=folder / "state.safetensors", fingerprint={"run": 1}, accelerator=accelerator,
        progress=lambda done, total, metrics: losses.append(metrics["loss"]),
    )  # fmt: skip
    loop.restore()
    started_at = loop.steps_done
    loop.run(STEPS, lambda step: [0, 1, 2], loss, weight=lambda part: part + 1.0, save_every=1)
    weights = [value for p in module.parameters() for value in p.detach().flatten().tolist()]
    everybody = gathered((sorted(computed), weights), accelerator)
    return {
        "process": loop.process,
        "processes": loop.processes,
        "started_at": started_at,
        "losses": losses,
        "computed": [parts for parts, _ in everybody],
        "alike": all(others == weights for _, others in everybody),
        "weights": weights,
    }


def in_processes(count: int, folder: Path) -> dict[str, Any]:
    """:func:`train` in forked processes with the environment variables of ``accelerate launch`` and torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    children = [
        context.Process(target=_child, args=(index, count, port, folder, results), daemon=True)
        for index in range(count)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * count
    return results.get()


def _child(index: int, count: int, port: int, folder: Path, results: Any) -> None:
    from accelerate.state import AcceleratorState

    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.update(
        RANK=str(index), LOCAL_RANK=str(index), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    result = train(folder, accelerated=True)
    torch.distributed.destroy_process_group()
    if index == 0:
        results.put(result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--accelerate", action="store_true")
    arguments = parser.parse_args()
    result = train(arguments.folder, accelerated=arguments.accelerate)
    if result["process"] == 0:
        print(json.dumps(result))
