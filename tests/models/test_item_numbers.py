"""Item numbers tell nothing: sequences whose items are numbered otherwise give every model the same metrics.

Numbers of the Amazon files follow the first appearance of an item in the file, and so know what comes next.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from word_encoder import WordEncoder

from reasonrec_fast.data import Interactions, load_sequences, split_by_time
from reasonrec_fast.experiments.config import EvaluationConfig
from reasonrec_fast.experiments.held_out import metrics_on_test
from reasonrec_fast.models import item_texts
from reasonrec_fast.models.classical import (
    EASE,
    SVD,
    AttributeKNN,
    BPRConfig,
    BSARec,
    BSARecConfig,
    DirectedItemKNN,
    HybridKNN,
    ItemKNN,
    ItemKNNConfig,
    Popularity,
    SASRec,
    SASRecConfig,
    TextKNN,
    TextTower,
    TextTowerConfig,
)
from reasonrec_fast.models.classical.bpr import BPR

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
USERS = 200
TRAINED = {"dim": 8, "epochs": 2, "batch": 64, "learning_rate": 0.01}
CLOSED = {
    "popularity": Popularity,
    "item-knn": ItemKNN,
    "item-knn, few": lambda: ItemKNN(ItemKNNConfig(neighbours=5)),
    "directed": DirectedItemKNN,
    "ease": EASE,
    "attributes": AttributeKNN,
    "titles": TextKNN,
    "hybrid": HybridKNN,
}
LEARNED = {
    "svd": SVD,
    "bpr": lambda: BPR(BPRConfig(**TRAINED)),
    "sasrec": lambda: SASRec(SASRecConfig(**TRAINED)),
    "sasrec, bias": lambda: SASRec(SASRecConfig(**TRAINED, item_bias=True, loss="bce", negatives=4)),
    "bsarec": lambda: BSARec(BSARecConfig(**TRAINED)),
    "text tower": lambda: TextTower(TextTowerConfig(**TRAINED, hidden=16)),
}


class NextNumber(Popularity):
    """What the test must find: it recommends the number after the largest one of the user."""

    def scores(self, users: np.ndarray) -> torch.Tensor:
        largest = np.array([self.histories.of_user(user).max(initial=-1) for user in users])
        return -torch.from_numpy(np.abs(np.arange(self.sizes["items"]) - largest[:, None] - 1)).float()


def synthetic() -> tuple[list[list[int]], dict[str, dict[str, object]]]:
    """Users who walk over items, numbered from 1 by first appearance, with some attributes and titles alike."""
    generator, number, rows = np.random.default_rng(0), {}, []
    for _user in range(USERS):
        item, row = int(generator.integers(300)), []
        for _ in range(int(generator.integers(4, 12))):
            if number.setdefault(item, len(number) + 1) not in row:
                row.append(number[item])
            item = int((item + generator.integers(1, 6) if generator.random() < 0.7 else generator.integers(300)) % 300)
        rows.append(row)
    names = {
        str(n): f"{('red', 'blue', 'green')[item % 3]} thing {item // 20}" for item, n in number.items() if item % 9
    }
    kinds = {str(n): [f"kind {item // 10}", f"colour {item % 3}"] for item, n in number.items() if item % 11}
    return rows, {"item_titles.json": names, "item_attributes.json": kinds}


def beauty(folder: Path) -> tuple[list[list[int]], dict[str, dict[str, object]]]:
    """The first users of the file, whose items have the smallest numbers."""
    lines = (folder / "amazon" / "beauty" / "sequences.txt").read_text().splitlines()[:USERS]
    rows = [list(map(int, line.split()[1:])) for line in lines]
    files = {}
    for name in ("item_titles.json", "item_attributes.json"):
        stored = json.loads((folder / "amazon" / "beauty" / name).read_text())
        files[name] = {str(item): stored[str(item)] for row in rows for item in row if str(item) in stored}
    return rows, files


def saved(
    folder: Path, rows: list[list[int]], files: dict[str, dict[str, object]], number: dict[int, int]
) -> Interactions:
    """The table of sequences in which items have other numbers."""
    folder.mkdir()
    lines = [" ".join(map(str, [user, *(number[item] for item in row)])) for user, row in enumerate(rows)]
    (folder / "sequences.txt").write_text("\n".join(lines))
    for name, values in files.items():
        (folder / name).write_text(json.dumps({str(number[int(item)]): value for item, value in values.items()}))
    return load_sequences(folder)


@pytest.fixture(scope="module", params=["synthetic", "beauty"])
def tables(request, tmp_path_factory) -> tuple[Interactions, Interactions]:
    """The same events with two numberings of the items."""
    if request.param == "beauty":
        if not SHARED_DATA.is_dir():
            pytest.skip("needs the development data in shared/data")
        rows, files = beauty(SHARED_DATA)
    else:
        rows, files = synthetic()
    items = sorted({item for row in rows for item in row})
    others = np.random.default_rng(1).permutation(len(items)) + 1
    folder = tmp_path_factory.mktemp("numbers")
    return (
        saved(folder / "own", rows, files, {item: item for item in items}),
        saved(folder / "other", rows, files, dict(zip(items, others.tolist(), strict=True))),
    )


def metrics(make, data: Interactions) -> dict[str, float]:
    split = split_by_time(data, "leave_one_out")
    return metrics_on_test(make().fit(data, split.train, split.validation), data, split, EvaluationConfig())


@pytest.mark.parametrize("kind", CLOSED)
def test_closed_forms_have_the_same_metrics(tables, kind, monkeypatch):
    monkeypatch.setattr(item_texts, "TextEncoder", WordEncoder)
    own, other = (metrics(CLOSED[kind], data) for data in tables)
    assert own == pytest.approx(other, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("kind", LEARNED)
def test_what_is_drawn_or_iterated_has_about_the_same_metrics(tables, kind, monkeypatch):
    monkeypatch.setattr(item_texts, "TextEncoder", WordEncoder)
    own, other = (metrics(LEARNED[kind], data)["hr@20"] for data in tables)
    noise = np.sqrt((own * (1 - own) + other * (1 - other)) / USERS)
    assert abs(own - other) <= 4 * noise + 1e-3


def test_a_model_that_reads_numbers_is_found(tables):
    own, other = (metrics(NextNumber, data)["hr@20"] for data in tables)
    assert own - other > 0.03
