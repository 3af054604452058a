"""The tables of README.md and the documentation are what ``benchmarks.tables`` makes of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

tables = pytest.importorskip("benchmarks.tables", reason="needs the checkout")


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_a_page_is_what_the_results_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.BLOCK.search(text), f"{page.name}: expected a generated table; there is none"
    assert tables.filled(text) == text, "run python -m benchmarks.tables"


def test_a_figure_that_was_edited_by_hand_is_seen() -> None:
    text = tables.PAGES[0].read_text(encoding="utf-8")
    block = tables.BLOCK.search(text)
    assert block
    row = block[0].splitlines()[3]
    assert tables.filled(text.replace(row, row.replace("0.", "0.9", 1))) == text


def test_a_table_without_results_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        tables.filled("<!-- demo: nothing -->\n<!-- end -->")
    with pytest.raises(ValueError, match="expected one of runs, demo"):
        tables.filled("<!-- demos: demo-movielens-full -->\n<!-- end -->")


def test_missing_values_and_large_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = dict.fromkeys(("gauc", "gauc_unrated", "mean_depth", "mean_depth_rated", "mean_depth_cold"))
    record |= {
        "system": "bias",
        "auc": 0.76622,
        "logloss": 0.5797,
        "requests_per_s": 130934.4,
        "p50_ms": 0.21,
        "p95_ms": 4,
    }
    (tmp_path / "small.json").write_text(json.dumps([record]))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    last = tables.demo("small").splitlines()[-1]
    assert last == "| bias | 0.7662 | – | – | 0.5797 | 130,934 | 0.2 | 4.0 | – | – | – |"
