"""``reasonrec-fast evaluate``: run an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reasonrec_fast.cli.console import DeviceOption, clear_errors, progress_bar, say, training_progress
from reasonrec_fast.files import check_writable

if TYPE_CHECKING:
    from reasonrec_fast.experiments.runner import Run


def evaluate(
    config: Annotated[str, typer.Argument(help="a .toml file, or the name of a configuration of the package")],
    seeds: Annotated[str | None, typer.Option(help="such as 0,1,2; the configuration's by default")] = None,
    output: Annotated[
        Path | None, typer.Option(help="file of JSON lines, one for each run; finished runs are not repeated")
    ] = None,
    data: Annotated[Path, typer.Option(help="folder of the data sets")] = Path("data"),
    device: DeviceOption = None,
) -> None:
    """Run models on data sets with several seeds; print a Markdown table and write a JSON line for each run.

    --device overrides the device of the configuration. A run that was finished on one device is not repeated on
    another, whose values would differ in the last digits; the JSON line names the device.
    """
    runs_file = output or Path("runs") / (Path(config.removesuffix(".toml")).name + ".jsonl")
    with clear_errors(lambda: f"the same command resumes; finished runs are in {runs_file}"):
        from reasonrec_fast.experiments.config import load_experiment
        from reasonrec_fast.experiments.report import markdown_table
        from reasonrec_fast.experiments.runner import run_experiment

        experiment = load_experiment(config)
        check_writable(runs_file)
        with progress_bar(experiment.name) as update:
            runs: list[Run] = run_experiment(
                experiment,
                data,
                runs_file,
                seeds=_seeds(seeds),
                device=device,
                progress=training_progress(update),
            )
        print(markdown_table(runs))
        say(f"Runs written to {runs_file}")


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = (-1,)
    if min(seeds) < 0:
        raise ValueError(f"--seeds: expected whole numbers such as 0,1,2; got {text!r}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds: expected each once; got {text!r}")
    return seeds
