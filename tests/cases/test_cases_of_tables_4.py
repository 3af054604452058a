"""What cannot be written is refused before hours of scoring, not after them."""

import pandas as pd
import pytest
from typer.testing import CliRunner

from reasonrec_fast.cli import optirag

EVENTS = {"user": ["a"], "item": ["x"], "timestamp": [1], "label": [None]}


@pytest.mark.parametrize("more,output", [({"probability": [0.5]}, "o.csv"), ({"x": [[1, "t"]]}, "o.parquet")])
def test_refused_before_the_model_is_loaded(tmp_path, monkeypatch, more, output):
    loaded = []
    monkeypatch.setattr(optirag, "require_model", lambda folder: None)
    monkeypatch.setattr(optirag, "load_model", lambda *given: loaded.append(given) or 1 / 0)
    pd.DataFrame(EVENTS | more).to_json(tmp_path / "in.jsonl", orient="records", lines=True)
    given = [
        "predict",
        "--model",
        str(tmp_path),
        "--data",
        str(tmp_path / "in.jsonl"),
        "--output",
        str(tmp_path / output),
    ]
    result = CliRunner().invoke(optirag.app, given)
    assert result.exit_code != 0
    assert not loaded
