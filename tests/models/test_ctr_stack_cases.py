"""CTRStack: what it refuses of rows, tools, checkpoints and folders, where an answer would be wrong without a word."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from reasonrec_fast import CTRStack, CTRStackConfig, load
from reasonrec_fast.data import DataError, Interactions, split_by_time
from reasonrec_fast.models.optirag import stack_state
from reasonrec_fast.models.optirag.boosted import SETTINGS
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig
from reasonrec_fast.models.optirag.index import EventIndex
from reasonrec_fast.models.optirag.item_tastes import ItemTastes
from reasonrec_fast.models.optirag.retriever import Retriever
from reasonrec_fast.models.optirag.stack_state import FitState
from reasonrec_fast.models.optirag.stack_tools import checked_logits, training_function_logits

RETRIEVER = EmbeddingConfig(dim=4, steps=3, batch=32)


def make(**settings):
    return CTRStack(CTRStackConfig(**{"tools": ("Bias",), "folds": 2, "retriever": RETRIEVER, **settings}))


@pytest.fixture
def fitted(events, monkeypatch):
    monkeypatch.setitem(SETTINGS, "learning_rate", 0.2)
    parts = split_by_time(events)
    return make().fit(events, parts.train, parts.validation)


# Rows


def test_rows_in_both_parts_are_refused(events):
    """Tools and biases know the labels of such rows, so that trees that are stopped on them never stop."""
    parts = split_by_time(events)
    both = np.sort(np.append(parts.validation, parts.train[5]))
    message = f"validation: expected other rows than those of train; got row {parts.train[5]} in both"
    with pytest.raises(DataError, match=message):
        make().fit(events, parts.train, both)


def test_tables_that_were_not_read_are_refused(fitted):
    """Reading sorts them, so that their rows would be others."""
    frame = pd.DataFrame({"user": ["u"], "item": ["i"], "timestamp": [3]})
    for score in (fitted.score_events, fitted.predict_rows):
        with pytest.raises(TypeError, match="data: expected Interactions, as of load_interactions; got DataFrame"):
            score(frame, [0])


def test_too_few_rows_are_told(events, caplog):
    """LightGBM says nothing of it, and all scores are the same."""
    first = events.take(np.arange(80))
    parts = split_by_time(first, "global_time", validation=0.3)
    stack = make().fit(first, parts.train, parts.validation)
    assert len(np.unique(stack.score_events(first, parts.test))) == 1
    assert "no tree splits 40 training requests, so that all requests get one score" in caplog.text


# Attributes


@pytest.mark.parametrize(
    ("values", "numeric"),
    [
        (lambda item: str(item), True),
        (lambda item: f"{item}e39", False),  # float32 holds none of them: all would be infinite
        (lambda item: f"{item}e-320", False),
        (lambda item: str(10**15 + item), False),  # float32 does not tell them apart
    ],
)
def test_numbers_that_float32_does_not_hold_are_words(events, values, numeric):
    catalog = events.catalog
    column = [(values(item),) for item in range(len(catalog))]
    events = replace(events, catalog=replace(catalog, attributes={"price": column}))
    rows = np.arange(len(events))
    tastes = ItemTastes(EventIndex(events, Retriever.train(events, rows, RETRIEVER), ""), rows)
    assert (list(tastes.numeric), tastes.others) == ((["price"], []) if numeric else ([], ["price"]))


# Functions


@pytest.mark.parametrize("name", [3, None, ("a", "b"), ["a"]])
def test_names_that_are_no_text_are_refused(name):
    """JSON would give back others, or none."""
    with pytest.raises(TypeError, match="name: expected text; got "):
        make().add_tool(name, lambda requests, liked: liked.lengths)


@pytest.mark.parametrize(
    "values",
    [
        np.array([1 + 2j, 3]),
        torch.tensor([1j, 2]),
        ["1.5", "2"],
        np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]"),
        np.ma.masked_array([1.0, 2.0], [False, True]),
        torch.ones(2).to_sparse(),
        {0: 1.0, 1: 2.0},
        None,
    ],
)
def test_logits_that_are_no_numbers_are_refused(values):
    with pytest.raises(DataError, match=r"tools: mine: expected numbers \[2\]; got "):
        checked_logits("mine", values, 2)


def test_logits_are_of_one_request_alone(events):
    """Counts of the requests tell how often the item occurs later."""
    train = events.take(split_by_time(events).train)

    def count(requests, liked):
        return np.bincount(requests.items)[requests.items]

    message = (
        r"tools: count: expected a logit that depends on its own request alone; row 0 has \d+.0 among \d+ requests"
    )
    with pytest.raises(DataError, match=message):
        training_function_logits("count", count, train)
    with pytest.raises(DataError, match="count: expected a logit that depends on its own request alone"):
        make(tools=()).add_tool("count", count).fit(events)
    logits = training_function_logits("liked", lambda requests, liked: liked.lengths, train)
    assert len(logits) == len(train)


# Checkpoints


def test_a_checkpoint_that_tells_of_no_run_is_refused(events, tmp_path):
    """Its arrays could be of any."""
    state = FitState(tmp_path / "state", {"seed": 0})
    state.keep("evidence.0", lambda: {"votes": np.zeros(3)})
    (state.folder / "run.json").unlink()
    (state.folder / ".killed.tmp").touch()
    with pytest.raises(ValueError, match=r"to be new, or to have the run.json of a fit; it has evidence.0.safetensors"):
        make().fit(events, checkpoint=tmp_path / "state")
    (state.folder / "evidence.0.safetensors").unlink()
    FitState(tmp_path / "state", {"seed": 1}).close()
    assert not state.folder.exists()


def test_what_tells_of_the_run_is_removed_last(tmp_path, monkeypatch):
    """A fit that is killed while it removes its checkpoint leaves none that another run takes for its own."""
    state = FitState(tmp_path / "state", {"seed": 0})
    state.keep("evidence.0", lambda: {"votes": np.zeros(3)})
    (state.folder / "Bias").mkdir()
    left, remove = [], shutil.rmtree

    def removing(path, **options):
        if path == state.folder:
            left.extend(child.name for child in path.iterdir())
        remove(path, **options)

    monkeypatch.setattr(stack_state.shutil, "rmtree", removing)
    state.close()
    assert left == ["run.json"]
    assert not state.folder.exists()


def test_tools_whose_names_end_in_numbers_are_kept_apart(events, tmp_path):
    """Blocks of one are none of the other, and no fold of the evidence, whatever the tool is named."""
    parts = split_by_time(events)
    kept = {"epochs": 1, "dim": 4, "kind": "FM"}
    tools = (kept, *({**kept, "name": name, "seed": 3} for name in ("FM-1", "evidence-0", "evidence")))
    stacks = [
        make(tools=tools).fit(events, parts.train, parts.validation, checkpoint=checkpoint)
        for checkpoint in (None, tmp_path / "state")
    ]
    scores = [stack.score_events(events, parts.test) for stack in stacks]
    np.testing.assert_array_equal(*scores)


# Folders


def test_parts_of_another_model_are_refused(events, fitted, tmp_path):
    expected = fitted.score_events(events, np.arange(3))
    fitted.save_pretrained(tmp_path / "model")
    other = make().fit(events, *(lambda parts: (parts.validation, parts.train))(split_by_time(events)))
    other.save_pretrained(tmp_path / "other")
    for part in ("events.safetensors", "items.json", "fitted_events.safetensors", "tools/Bias/model.safetensors"):
        shutil.copytree(tmp_path / "model", tmp_path / "mixed", dirs_exist_ok=True)
        np.testing.assert_array_equal(load(tmp_path / "mixed").score_events(events, np.arange(3)), expected)
        if part == "items.json":
            words = json.loads((tmp_path / "mixed" / part).read_text())
            (tmp_path / "mixed" / part).write_text(json.dumps({**words, "items": words["items"][::-1]}))
        else:
            shutil.copy(tmp_path / "other" / part, tmp_path / "mixed" / part)
        with pytest.raises(ValueError, match=f"{part}: expected the file that was saved with the model"):
            load(tmp_path / "mixed")


def test_folders_of_before_there_were_digests_load(events, fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["files"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    rows = np.arange(3)
    np.testing.assert_array_equal(load(tmp_path).score_events(events, rows), fitted.score_events(events, rows))


def test_requests_of_a_moment_do_not_know_each_other():
    """A label of the same moment is in nobody's evidence, whichever comes first in the file."""
    users, items = [f"u{row % 20}" for row in range(400)], [f"i{row * 7 % 13}" for row in range(400)]
    data = Interactions.from_columns(
        users, items, [row * row % 3 > 0 for row in range(400)], [row // 100 for row in range(400)]
    )
    parts = split_by_time(data)
    stack = make().fit(data, parts.train, parts.validation)
    at_once = parts.test[data.timestamps[parts.test] == 3]
    other = replace(data, labels=np.where(data.timestamps == 3, 1 - data.labels, data.labels))
    np.testing.assert_array_equal(stack.score_events(data, at_once), stack.score_events(other, at_once))


def test_an_item_of_which_nothing_was_learnt_is_new_whether_the_table_named_it_or_not():
    """In the table of the fit or not: a tool has no logit of an item without training events, nor the trees another."""
    users, items = [f"u{row % 20}" for row in range(400)], [f"i{row * 7 % 13}" for row in range(360)] + ["late"] * 40
    labels, times = [row * row % 3 > 0 for row in range(400)], list(range(400))
    named = Interactions.from_columns(users, items, labels, times)
    lacked = Interactions.from_columns(users, [*items[:360], *["later"] * 40], labels, times)
    train, validation, late = np.arange(300), np.arange(300, 360), np.arange(360, 400)
    stack = make(tools=("EASE", {"kind": "FM", "epochs": 2})).fit(named, train, validation)
    np.testing.assert_array_equal(stack.score_events(named, late), stack.score_events(lacked, late))
    source, rows = stack.request_source(named)
    columns = stack._visible(source, rows[np.append(late, 0)]).columns[:, -2:]
    assert np.isnan(columns[:-1]).all() and np.isfinite(columns[-1]).all()
