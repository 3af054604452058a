"""``python -m benchmarks.tables``: the tables of README.md and the documentation from ``benchmarks/results``.

A table stands between ``<!-- KIND: NAME ... -->`` and ``<!-- end -->``; a NAME is that of a file of results without its
ending, a KIND one of :data:`KINDS`. ``--check`` writes nothing and fails where a page differs from what it would write.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reasonrec_fast.experiments.report import markdown_table
from reasonrec_fast.experiments.runner import load_runs
from reasonrec_fast.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "results.md",
    ROOT / "docs" / "early-exit.md",
    ROOT / "docs" / "evaluate.md",
    ROOT / "docs" / "reasonrec.md",
)
BLOCK = re.compile(r"<!-- (?P<kind>[a-z-]+): (?P<names>[^>]*?) -->\n.*?<!-- end -->", re.DOTALL)

Row = Sequence[str]


def markdown(header: Row, rows: Iterable[Row]) -> str:
    """A table in Markdown.

    >>> print(markdown(["system", "AUC"], [["bias", "0.7662"]]))
    | system | AUC |
    | --- | --- |
    | bias | 0.7662 |
    """
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def number(value: float | None, form: str) -> str:
    """A number in a form of :func:`format`, or a dash for none."""
    return "–" if value is None else format(value, form)


def rate(value: float) -> str:
    """Requests per second: whole from 100 on, else with one decimal."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def milliseconds(value: float) -> str:
    """A duration with two decimals below 10 ms, else one."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def read(name: str) -> Any:
    """The contents of a JSON file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def runs(*names: str) -> str:
    """Runs of experiments (``.jsonl``), means over seeds."""
    return markdown_table([run for name in names for run in load_runs(RESULTS / f"{name}.jsonl")])


def demo(name: str) -> str:
    """The systems of the demo: accuracy, requests per second, latencies and depths."""
    header = [
        *("system", "AUC", "GAUC", "GAUC, unrated films", "log-loss", "requests/s", "p50 ms", "p95 ms"),
        *("depth", "depth, rated", "depth, cold"),
    ]
    return markdown(
        header,
        [
            [
                record["system"],
                *(number(record[key], ".4f") for key in ("auc", "gauc", "gauc_unrated", "logloss")),
                rate(record["requests_per_s"]),
                *(number(record[key], ".1f") for key in ("p50_ms", "p95_ms")),
                *(number(record[key], ".1f") for key in ("mean_depth", "mean_depth_rated", "mean_depth_cold")),
            ]
            for record in read(name)
        ],
    )


RETRIEVALS = {"gcn": "GCN", "text": "text", "none": "none"}


def retrieval(name: str) -> str:
    """The same model with three kinds of retrieval."""
    result = read(name)
    times = result["milliseconds_a_user"]
    cached = {"text": f" ({times['text_cached']:.2f} with item texts embedded before)"}
    header = ["retrieval", "AUC", "GAUC", "GAUC, unrated films", "AUC, GAUC, evidence only", "ms a user"]
    return markdown(
        header,
        [
            [
                RETRIEVALS[kind],
                *(number(record[key], ".4f") for key in ("auc", "gauc", "gauc_unrated")),
                f"{record['evidence_auc']:.4f}, {record['evidence_gauc']:.4f}",
                f"{milliseconds(times[kind])}{cached.get(kind, '')}" if kind in times else "–",
            ]
            for record in result["records"]
            for kind in [record["retrieval"]]
        ],
    )


def retrieval_differences(name: str) -> str:
    """The GCN's retrieval minus the others, with 95 % intervals."""
    rows = []
    for record in read(name)["records"]:
        if (differences := record["gcn_minus_this"]) is not None:
            intervals = [differences[metric] for metric in ("auc", "gauc")]
            cells = [f"{i['value']:+.4f} [{i['low']:+.4f}, {i['high']:+.4f}]" for i in intervals]
            rows.append([RETRIEVALS[record["retrieval"]], *cells])
    return markdown(["GCN minus", "AUC", "GAUC"], rows)


def exits(name: str) -> str:
    """Ways of training exits: AUC and GAUC at each exit, and of early exit."""
    records = read(name)
    every = sorted({depth for record in records for depth in record["exits"]})

    def pair(auc: float | None, gauc: float | None) -> str:
        return "–" if auc is None or gauc is None else f"{auc:.4f} {gauc:.4f}".replace("0.", ".")

    rows = []
    for record in records:
        of_exit = dict(zip(record["exits"], zip(record["auc"], record["gauc"], strict=True), strict=True))
        rows.append(
            [
                record["kind"],
                *(pair(*of_exit.get(depth, (None, None))) for depth in every),
                pair(record["early_auc"], record["early_gauc"]),
                number(record["early_depth"], ".1f"),
            ]
        )
    return markdown(["training", *(f"exit {depth}" for depth in every), "early exit", "mean depth"], rows)


def agent(*names: str) -> str:
    """What asking a language model adds to the stack, policy by policy, of the first run of each file."""
    rows = []
    for name in names:
        metrics = load_runs(RESULTS / f"{name}.jsonl")[0].metrics
        found = ("hr@5", "ndcg@5", "hr@10")
        rows.append([name, "stack alone", "0", "0", *(number(metrics[f"stack/{metric}"], ".4f") for metric in found)])
        for policy in ("always", "consult", "gain", "budget", "risk"):
            shares = [f"{metrics[f'{policy}/share/{who}']:.0%}" for who in ("agent", "consult")]
            rows.append([name, policy, *shares, *(_difference(metrics, f"{policy}/{metric}") for metric in found)])
        rows.append([name, "room", "–", "–", *(number(metrics[f"room/{metric}"], ".4f") for metric in found)])
    return markdown(["data", "policy", "asked", "consulted", "HR@5", "NDCG@5", "HR@10"], rows)


def _difference(metrics: Mapping[str, float | None], name: str) -> str:
    value, low, high = (metrics[f"{name}/difference/{end}"] for end in ("value", "low", "high"))
    return interval({"value": value, "low": low, "high": high})


def interval(ends: Mapping[str, float | None] | None) -> str:
    """A difference with its interval.

    >>> interval({"value": 0.01, "low": -0.002, "high": 0.02})
    '+0.0100 [-0.0020, +0.0200]'
    """
    if ends is None or ends["value"] is None:
        return "–"
    return f"{ends['value']:+.4f} [{number(ends['low'], '+.4f')}, {number(ends['high'], '+.4f')}]"


def ablations(name: str) -> str:
    """What each part adds to an agent at the trust that calibration found, and at full trust."""
    rows = []
    for arm, entry in read(name)["arms"].items():
        for kind in ("calibrated", "full trust"):
            what = f"{kind}, what the part adds"
            over = f"{kind}, over the stack"
            for group, values in entry.get(what, entry[over]).items():
                trust = number(entry["trust"], ".2f") if kind == "calibrated" else "1"
                rows.append([arm, trust, group, *(interval(values[metric]) for metric in ("ndcg@5", "hr@5", "nats"))])
    return markdown(["part", "trust", "users", "NDCG@5", "HR@5", "log-likelihood, nats"], rows)


def residual(*names: str) -> str:
    """What OptiRAG's corrections add to a regression on each set of rivals, seed by seed."""
    rows = []
    for name in names:
        report = read(name)
        for rivals, groups in report["language model adds"].items():
            metrics = report["metrics"][rivals]
            cells = [
                interval(dict(zip(("value", "low", "high"), groups[group][metric], strict=True)))
                for group, metric in (("all requests", "auc"), ("all requests", "gauc"), ("unrated films", "gauc"))
            ]
            base = [number(metrics[metric], ".4f") for metric in ("auc", "gauc", "gauc_unrated")]
            rows.append([str(report["seed"]), rivals, *base, *cells])
    return markdown(
        ["seed", "rivals", "AUC", "GAUC", "GAUC, unrated", "language model adds: AUC", "GAUC", "GAUC, unrated"], rows
    )


KINDS: dict[str, Callable[..., str]] = {
    "runs": runs,
    "demo": demo,
    "retrieval": retrieval,
    "retrieval-differences": retrieval_differences,
    "exits": exits,
    "agent": agent,
    "ablations": ablations,
    "residual": residual,
}


def filled(text: str) -> str:
    """A page with its tables generated anew.

    Raises:
        ValueError: a table of an unknown kind.
        FileNotFoundError: a table's file of results does not exist.
    """

    def table(block: re.Match[str]) -> str:
        kind, names = block["kind"], block["names"]
        if kind not in KINDS:
            raise ValueError(f"{block[0].splitlines()[0]}: expected one of {', '.join(KINDS)}; got {kind!r}")
        return f"<!-- {kind}: {names} -->\n{KINDS[kind](*names.split())}\n<!-- end -->"

    return BLOCK.sub(table, text)


def main() -> None:
    """Write the pages, or with ``--check`` name those that differ."""
    different = []
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        if (after := filled(before)) != before:
            different.append(page.name)
            if "--check" not in sys.argv[1:]:
                with atomic_write(page) as temporary:
                    temporary.write_text(after, encoding="utf-8")
    if different and "--check" in sys.argv[1:]:
        raise SystemExit(f"differ from benchmarks/results: {', '.join(different)}; run python -m benchmarks.tables")


if __name__ == "__main__":
    main()
