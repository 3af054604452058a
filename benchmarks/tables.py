"""``python -m benchmarks.tables``: writes the tables of ``docs/results.md`` from the runs in ``benchmarks/results``.

A table is between ``<!-- runs: NAME ... -->`` and ``<!-- end -->``; a NAME is that of a ``.jsonl`` file.
"""

from __future__ import annotations

import re
from pathlib import Path

from reasonrec_fast.experiments.report import markdown_table
from reasonrec_fast.experiments.runner import load_runs
from reasonrec_fast.files import replacing

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
BLOCK = re.compile(r"<!-- runs: (?P<names>[^>]*?) -->\n.*?<!-- end -->", re.DOTALL)


def filled(text: str, results: Path = ROOT / "benchmarks" / "results") -> str:
    """The page with its tables generated from the runs.

    Raises:
        FileNotFoundError: a named file of runs does not exist.
    """

    def table(block: re.Match[str]) -> str:
        runs = []
        for name in block["names"].split():
            path = results / f"{name}.jsonl"
            if not path.is_file():
                raise FileNotFoundError(f"{PAGE.name}: expected runs in {path}; there are none")
            runs += load_runs(path)
        return f"<!-- runs: {block['names']} -->\n{markdown_table(runs)}\n<!-- end -->"

    return BLOCK.sub(table, text)


def main() -> None:
    """Write the page."""
    text = filled(PAGE.read_text(encoding="utf-8"))
    with replacing(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
