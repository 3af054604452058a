"""Runs models on data sets and keeps a JSON line for each run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from reasonrec_fast.data.datasets import EVENTS
from reasonrec_fast.devices import device_name, resolve_device
from reasonrec_fast.experiments.config import DatasetConfig, EvaluationConfig, Experiment, ModelConfig
from reasonrec_fast.experiments.held_out import with_reasons
from reasonrec_fast.experiments.tasks import Task, prepare
from reasonrec_fast.files import atomic_write, check_writable, file_lock, read_json, write_json
from reasonrec_fast.memory import peak_bytes, reset_peak_memory
from reasonrec_fast.training.progress import Progress, named_part

_LONG = 60.0  # seconds; a model whose fit took longer is kept until it is measured
_TOLD = "fitted.json"


@dataclass(frozen=True)
class Run:
    """A line of the results; see :func:`run_experiment`.

    Attributes:
        config: name of the experiment.
        model, dataset, split, seed: of the run, with the names of model and data set in reports; ``"files"`` is the
            split of data sets that are divided into files.
        settings: of model and evaluation, as in the file.
        metrics: on the test part; None for undefined metrics.
        seconds: of fitting.
        peak_memory_bytes: of the process during fitting and scoring; None if the system does not report it.
        revision: of the code.
        versions, machine: of the libraries and the machine (see :func:`machine`); not part of the run's identity, so
            that it is not repeated on another device.
        data: digest of the events, so that runs on other events differ even if their files have the same name.
        undefined: for each undefined metric the reason.
        kind: of the model, independent of its name.
    """

    config: str
    model: str
    dataset: str
    split: str
    seed: int
    settings: dict[str, Any]
    metrics: dict[str, float | None]
    seconds: float
    peak_memory_bytes: int | None
    revision: str
    versions: dict[str, str]
    machine: dict[str, Any]
    data: str = ""
    undefined: dict[str, str] = field(default_factory=dict)
    kind: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """The identity of a run."""
        return *self.group, self.seed

    @property
    def group(self) -> tuple[str, ...]:
        """The identity of a run without its seed."""
        settings = json.dumps(self.settings, sort_keys=True)
        return self.config, self.model, self.kind, self.dataset, self.split, settings, self.data


def run_experiment(
    experiment: Experiment,
    data: Path,
    output: Path,
    *,
    seeds: tuple[int, ...] | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> list[Run]:
    """Run what is missing in ``output``, and return all runs of the experiment.

    A run that was killed resumes from its checkpoint of the last minute; finished runs are not repeated.

    Args:
        experiment: to run.
        data: folder of the data sets.
        output: file of JSON lines; a line is added after each run.
        seeds: instead of the experiment's.
        device: instead of the experiment's; if neither has a device, the GPU if there is one.
        progress: called after every epoch; its parts are the runs.

    Raises:
        ValueError: a line of ``output`` is not a run, or a device that does not exist.
        DataError: a data set is not as expected.
    """
    device = resolve_device(experiment.device if device is None else device)
    check_writable(_state(output, ""))
    done = {run.key: run for run in load_runs(output)}
    titles = dataset_titles(experiment.datasets)
    settings = experiment.evaluation
    pairs = list(zip(experiment.datasets, titles, strict=True))
    tasks = [prepare(dataset, data, settings, title) for dataset, title in pairs]
    planned = [
        (_prepared(experiment, model, dataset, title, task.digest, seed, device), model, task)
        for (dataset, title), task in zip(pairs, tasks, strict=True)
        for model in experiment.models
        for seed in (experiment.seeds if seeds is None else seeds)
    ]
    checked: set[tuple[Any, ...]] = set()
    for run, model, task in planned:
        if run.key not in done and run.group not in checked:  # the checks do not depend on the seed
            checked.add(run.group)
            task.check_model(model.make(settings.task, run.seed, device=device), settings)
    for run, model, task in planned:
        if run.key not in done:
            finished = _finished(run, model, settings, task, output, device, progress)
            done[run.key] = finished
            _add(finished, output)
    return [done[key] for key in dict.fromkeys(run.key for run, *_ in planned)]  # without repetitions


def load_runs(path: Path) -> list[Run]:
    """Runs of a file of JSON lines; empty if there is no file.

    Raises:
        ValueError: a line is not a run (it is named).
    """
    if not path.is_file():
        return []
    runs = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            runs.append(Run(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected a run; {error}") from error
    return runs


def dataset_titles(datasets: Sequence[DatasetConfig]) -> list[str]:
    """Titles of data sets in reports; data sets with equal titles are distinguished by their paths.

    >>> dataset_titles([DatasetConfig("table", "a/x.csv"), DatasetConfig("table", "b/x.csv")])
    ['a/x.csv', 'b/x.csv']
    """
    titles = [dataset.title for dataset in datasets]
    return [
        dataset.path or title if titles.count(title) > 1 else title
        for dataset, title in zip(datasets, titles, strict=True)
    ]


def _prepared(
    experiment: Experiment, model: ModelConfig, dataset: DatasetConfig, title: str, digest: str, seed: int,
    device: torch.device,
) -> Run:  # fmt: skip
    """A run without its results."""
    parts = dataset.split if dataset.kind in EVENTS else "files"
    settings = json.loads(json.dumps({"model": model.settings, "evaluation": asdict(experiment.evaluation)}))
    return Run(
        experiment.name, model.title, title, parts, seed, settings, {}, 0.0, None, revision(),
        versions(), machine(device), digest, kind=model.kind,
    )  # fmt: skip


def _finished(
    run: Run,
    model: ModelConfig,
    settings: EvaluationConfig,
    task: Task,
    output: Path,
    device: torch.device,
    progress: Progress | None,
) -> Run:
    made = model.make(settings.task, run.seed, device=device)
    name = f"{run.model}-{run.dataset}-{run.seed}"
    # Names are arbitrary text, so the file name is a digest of the run's identity.
    digest = hashlib.sha256(repr(run.key).encode()).hexdigest()[:16]
    state = _state(output, digest)
    measured = reset_peak_memory()
    fitted, told = _fitted(made, task, state, device, measured, named_part(progress, name))
    metrics, undefined = with_reasons(task.metrics(fitted, settings))
    for rest in state.parent.glob(f"{digest}*"):  # the checkpoint, and what models keep beside it
        shutil.rmtree(rest) if rest.is_dir() and not rest.is_symlink() else rest.unlink()
    values = asdict(run) | {"metrics": metrics, "undefined": undefined, "seconds": told["seconds"]}
    return Run(**(values | {"peak_memory_bytes": max(peak_bytes(), told["peak"]) if measured else None}))


def _fitted(
    model: Any, task: Task, state: Path, device: torch.device, measured: bool, progress: Progress | None
) -> tuple[Any, dict[str, Any]]:
    """The model, fitted or as a run left it that was killed while it was measured; and the seconds of its fit and the
    peak of its memory."""
    folder = state.with_suffix(".fitted")
    if (folder / _TOLD).is_file():  # it is written last
        return type(model).from_pretrained(folder, device=device), read_json(folder / _TOLD)
    begin = time.perf_counter()
    task.fit(model, state, progress)
    told = {"seconds": time.perf_counter() - begin, "peak": peak_bytes() if measured else 0}
    if told["seconds"] >= _LONG:
        model.save_pretrained(folder)
        write_json(folder / _TOLD, told)
    return model, told


def _state(output: Path, digest: str) -> Path:
    """The checkpoint file of a run."""
    return output.parent / f".{output.name}.state" / f"{digest}.safetensors"


def _add(run: Run, output: Path) -> None:
    """Append a line, also if other processes do so concurrently."""
    with file_lock(output):
        previous = output.read_text(encoding="utf-8").rstrip("\n") if output.is_file() else ""
        lines = [*([previous] if previous else []), json.dumps(asdict(run), allow_nan=False)]
        with atomic_write(output) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def revision() -> str:
    """The git revision of the package's checkout, with ``+`` if files were changed; otherwise the package's version."""
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return importlib.metadata.version("reasonrec-fast")
    return result.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect results."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in ("torch", "numpy", "reasonrec-fast")
    }


def machine(device: torch.device | str | None = None) -> dict[str, Any]:
    """Processor, threads, and the device that the model is on (:func:`~reasonrec_fast.devices.device_name`)."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return {"processor": processor, "threads": torch.get_num_threads(), **device_name(resolve_device(device))}
