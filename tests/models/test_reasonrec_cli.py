"""ReasonRec from the command line, on a small shop."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from reasonrec_fast.cli.main import app
from reasonrec_fast.cli.reasonrec import _settings
from reasonrec_fast.models.reasonrec import ReasonRec

COLUMNS = "user=customer,item=sku,timestamp=bought_at"


def run(*arguments):
    return CliRunner().invoke(app, ["reasonrec", *map(str, arguments)])


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Customers who walk through a catalogue, and the catalogue with names and kinds."""
    folder = tmp_path_factory.mktemp("shop")
    generator = np.random.default_rng(0)
    rows = []
    for customer in range(50):
        article = int(generator.integers(20))
        for step in range(int(generator.integers(5, 9))):
            moment = pd.Timestamp("2026-01-01") + pd.Timedelta(hours=100 * step + customer)
            rows.append((f"c-{customer:03}", f"SKU/{article}", moment.isoformat()))
            article = (article + (1 if generator.random() < 0.7 else 4)) % 20
    pd.DataFrame(rows, columns=["customer", "sku", "bought_at"]).to_csv(folder / "events.csv", index=False)
    articles = [(f"SKU/{number}", f"Tea no. {number}", f"kind {number % 4}") for number in range(20)]
    pd.DataFrame(articles, columns=["sku", "title", "kind"]).to_csv(folder / "items.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def trained(shop, tiny_backbone):
    config = {
        "stack": {"tools": ["DirectedItemKNN", "ItemKNN"], "candidates": 6, "depth": 10, "trees": 20, "min_leaf": 5},
        "agent": {"backbone": str(tiny_backbone), "layers": 2, "candidates": 6, "train_candidates": 4, "lora_rank": 2},
        "k": 2,
    }
    (shop / "config.json").write_text(json.dumps(config))
    data = ["--data", shop / "events.csv", "--items", shop / "items.csv", "--columns", COLUMNS]
    result = run("train", *data, "--output", shop / "model", "--config", shop / "config.json")
    assert result.exit_code == 0, result.output
    return shop


def test_a_trained_model_has_every_event_as_history(trained):
    model = ReasonRec.from_pretrained(trained / "model")
    events = pd.read_csv(trained / "events.csv")
    assert model.histories.lengths.sum() == len(events.drop_duplicates(["customer", "sku"]))
    assert not list(trained.glob("model/training*"))


def test_recommendations_as_a_table(trained):
    pd.DataFrame({"customer": ["c-007", "c-003"], "segment": ["x", "y"]}).to_csv(trained / "who.csv", index=False)
    output = trained / "answers.csv"
    result = run(
        "recommend", "--model", trained / "model", "--users", trained / "who.csv", "--columns", "user=customer",
        "--output", output, "-k", 3, "--policy", "always",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    table = pd.read_csv(output)
    assert table["customer"].tolist() == ["c-007"] * 3 + ["c-003"] * 3
    assert table["rank"].tolist() == [1, 2, 3] * 2 and set(table["answered_by"]) == {"agent"}
    assert table["segment"].tolist() == ["x"] * 3 + ["y"] * 3
    assert table["why"].str.contains("Tea no.").all()
    expected = ReasonRec.from_pretrained(trained / "model").recommend(["c-007", "c-003"], 3, policy="always")
    assert table["item"].tolist() == expected.items.ravel().tolist()


def test_recommendations_in_the_terminal(trained):
    result = run("recommend", "--model", trained / "model", "--user", "c-001", "-k", 2, "--policy", "never")
    assert result.exit_code == 0, result.output
    assert "c-001: answered by the stack" in result.output and "  2. SKU/" in result.output


def test_new_users_are_served_from_their_events(trained):
    new = pd.DataFrame({"customer": ["new"] * 2, "sku": ["SKU/3", "SKU/4"], "bought_at": ["2026-03-01", "2026-03-02"]})
    new.to_csv(trained / "new.csv", index=False)
    result = run(
        "recommend", "--model", trained / "model", "--data", trained / "new.csv", "--columns", COLUMNS, "--user", "new",
        "--output", "-", "-k", 2,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.output.count("new,") == 2 and "SKU/3" not in {
        line.split(",")[2] for line in result.output.splitlines() if line.startswith("new,")
    }


def test_explanations(trained):
    result = run("explain", "--model", trained / "model", "--user", "c-001", "--item", "SKU/3", "--item", "SKU/5")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("SKU/")]
    assert len(lines) == 2 and "Tea no. 3 shares" in lines[0]


def test_the_report(trained):
    result = run(
        "evaluate", "--model", trained / "model", "--data", trained / "events.csv", "--columns", COLUMNS, "--ks", "2,4",
        "--output", trained / "report.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads((trained / "report.json").read_text())
    assert set(report["policies"]) == {"always", "consult", "gain", "budget", "risk"}
    assert report["users"] == 50 and 0 <= report["stack"]["hr@2"] <= report["room"]["hr@2"] <= 1


@pytest.fixture(scope="module")
def thinker(shop, tiny_backbone):
    """A model without an agent, that writes chains."""
    config = {
        "stack": {"tools": ["DirectedItemKNN", "ItemKNN"], "candidates": 6, "depth": 10, "trees": 20, "min_leaf": 5},
        "agent": None,
        "chain": {"samples": 8, "lora_rank": 2, "max_tokens": 400},
        "k": 2,
    }
    (shop / "thinker.json").write_text(json.dumps(config))
    result = run(
        "train", "--data", shop / "events.csv", "--items", shop / "items.csv", "--columns", COLUMNS, "--output",
        shop / "thinker", "--config", shop / "thinker.json", "--backbone", tiny_backbone, "--seed", 3,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return shop


def test_a_chain_is_written_under_the_answers(thinker):
    arguments = ("recommend", "--model", thinker / "thinker", "--user", "c-001", "--user", "c-002", "-k", 2)
    result = run(*arguments, "--think")
    assert result.exit_code == 0, result.output
    model = ReasonRec.from_pretrained(thinker / "thinker")
    assert model.chain.config.backbone == model.config.chain.backbone and model.chain.config.seed == 3
    places = []
    for user in ("c-001", "c-002"):
        chain = model.think([user], 1)[0]
        places += [result.output.index(f"{user}: answered by the stack"), result.output.index(chain.text)]
        end = "the chain ends in no candidate" if chain.finished else "the chain was cut before it ended"
        assert chain.item is None and end in result.output  # of a model with random weights
    assert places == sorted(places)
    assert "Thought:" not in run(*arguments).output
    assert not list((thinker / "thinker").glob("training*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recommend", "--model", "{}/model", "--user", "nobody"], "a user whom the model or --data knows"),
        (["recommend", "--model", "{}/model", "--user", "c-001", "--policy", "luck"], "policy: expected one of"),
        (["recommend", "--model", "{}/nothing", "--user", "c-001"], "expected a saved model"),
        (["recommend", "--model", "{}/model", "--user", "c-001", "--users", "{}/events.csv"], "expected one of them"),
        (["recommend", "--model", "{}/model", "--user", "c-001", "--think"], "expected a model that was fitted with"),
        (["recommend", "--model", "{}/model", "--think", "--output", "-"], "--think, --output: expected one of them"),
        (["explain", "--model", "{}/model", "--user", "c-001", "--item", "SKU/x"], "items: expected identifiers"),
        (["evaluate", "--model", "{}/model", "--data", "{}/events.csv", "--columns", COLUMNS, "--ks", "10"], "ks"),
        (["train", "--data", "{}/events.csv", "--output", "{}/new", "--config", "{}/who.json"], "who.json"),
    ],
)
def test_refusals_are_one_line(trained, arguments, message):
    (trained / "who.json").write_text('{"agents": 3}')
    result = run(*(argument.replace("{}", str(trained)) for argument in arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split()) and "Traceback" not in result.output


def test_a_backbone_is_that_of_every_language_model(tmp_path):
    parts = {"titles": {"backbone": "one"}, "chain": {"backbone": "two"}, "ctr": {"backbone": "three"}}
    (tmp_path / "config.json").write_text(json.dumps(parts))
    settings = _settings(tmp_path / "config.json", "other", None)
    assert {getattr(settings, name).backbone for name in parts} == {"other"} and settings.agent is None
    (tmp_path / "config.json").write_text(json.dumps({"titles": {"backbone": "one"}}))
    assert _settings(tmp_path / "config.json", "other", 3).titles.backbone == "other"
    (tmp_path / "config.json").write_text(json.dumps({"agent": None}))
    with pytest.raises(ValueError, match="--backbone: expected a configuration with an agent or chains"):
        _settings(tmp_path / "config.json", "other", None)
