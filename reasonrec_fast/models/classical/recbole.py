"""Any model of RecBole (Zhao et al. 2021, arXiv 2011.01731) as one of ours, where RecBole is installed."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from reasonrec_fast.data import DataError, Histories, Interactions
from reasonrec_fast.devices import fork_rng, on_device, seed_rng
from reasonrec_fast.models.classical.base import ClassicalRecommender
from reasonrec_fast.models.classical.fields import distinct
from reasonrec_fast.settings import Count, Whole, check_settings
from reasonrec_fast.training.progress import Progress

_NAME, _DATASET = "events", "dataset"
_PAIRS = 65536  # scored at a time


@dataclass(frozen=True)
class RecBoleConfig:
    """What to train.

    Attributes:
        model: RecBole's name of a general, sequential or context-aware model.
        settings: RecBole's own settings, by its names.
        epochs, patience: at most, and without a better validation value.
        seed: of everything random.
    """

    model: str = "LightSANs"
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: Whole = 50
    patience: Count = 10
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)


class RecBole(ClassicalRecommender):
    """A model of RecBole, trained by RecBole's trainer and validated as our own are.

    General models learn the positive events (and negatives that RecBole draws); sequential ones every next item of a
    history, and they serve every user who has one; context-aware ones learn labels from users, items and attributes.

    RecBole keeps the states of a training as pickles, which this package does not write: a training that is killed
    begins anew. Saving keeps the training events too, because RecBole builds its models from them.

    Args:
        config: what to train.
        device: of the model.

    Raises:
        ModuleNotFoundError: RecBole is not installed.
        ValueError: a model that RecBole does not know, or one of another kind.
    """

    config_type = RecBoleConfig
    config: RecBoleConfig
    user_ids: torch.Tensor
    item_ids: torch.Tensor

    def __init__(self, config: RecBoleConfig | None = None, *, device: torch.device | str | None = None) -> None:
        super().__init__(config, device=device)
        try:
            from recbole.utils import ModelType, get_model
        except ImportError as error:
            raise ModuleNotFoundError(
                f"RecBole: expected RecBole and what it needs, in the extra recbole (see the README); {error}"
            ) from error
        kinds = {ModelType.GENERAL: "general", ModelType.SEQUENTIAL: "sequential", ModelType.CONTEXT: "context"}
        kinds[ModelType.TRADITIONAL] = "general"
        try:
            self.kind = kinds.get(get_model(self.config.model).type, "")
        except (ImportError, ValueError) as error:
            raise ValueError(f"model: expected the name of a RecBole model; got {self.config.model!r}") from error
        self.learns_labels = self.kind == "context"
        if not self.kind:
            raise ValueError(f"model: expected a general, sequential or context-aware one; got {self.config.model!r}")
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def serves_new_users(self) -> bool:
        return self.kind != "general"

    def check_served(self, users: np.ndarray) -> None:
        if self.kind == "sequential":
            super().check_served(users)

    def build_parameters(self, sizes: dict[str, int]) -> None:
        from recbole.data import create_dataset, data_preparation
        from recbole.utils import get_model

        self._settings = self._recbole_config()
        with self._seeded():
            self.dataset = create_dataset(self._settings)
            self.loader, _, _ = data_preparation(self._settings, self.dataset)
            self.network = get_model(self.config.model)(self._settings, self.loader.dataset)
        for name, size in (("user", sizes["users"]), ("item", sizes["items"])):
            known = self.dataset.field2token_id[f"{name}_id"]
            # 0 is RecBole's padding: for users that training does not have.
            ids = torch.tensor([known.get(str(index), 0) for index in range(size)])
            self.register_buffer(f"{name}_ids", ids, persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> RecBole:
        before = self.device
        super()._apply(fn, recurse)
        if self.device != before and hasattr(self, "network"):
            # RecBole's models keep tensors on their device that are no buffers and do not move: build the model again.
            weights, training = self.network.state_dict(), self.network.training
            self.build_parameters(self.sizes)
            self.network.load_state_dict(weights)
            self.network.train(training)
            super()._apply(fn, recurse)
        return self

    def fit_rows(
        self,
        data: Interactions,
        train: np.ndarray,
        validation: np.ndarray | None,
        *,
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        self.begin(data, train)
        best, kept, waited = -np.inf, None, 0
        with self._seeded():
            for epoch, epochs, loss in self.epochs():
                metrics = {"loss": loss}
                if validation is not None:
                    self.network.eval()
                    reached = self._validated(data, validation)
                    waited += 1
                    if reached > best:
                        best, kept, waited = reached, copy.deepcopy(self.network.state_dict()), 0
                    metrics |= {"validation": float(reached), "best": float(best)}
                if progress is not None:
                    progress(epoch, epochs, metrics)
                if waited >= self.config.patience:
                    break
        if kept is not None:
            self.network.load_state_dict(kept)
        self.eval()

    def begin(self, data: Interactions, train: np.ndarray) -> None:
        """Build the untrained model for the training events."""
        self._write(data, train)
        self.build({"users": data.num_users, "items": data.num_items})
        self.set_histories_from(data, train)

    def epochs(self) -> Iterator[tuple[int, int, float]]:
        """Train, yielding after each epoch its number from 1, the number of epochs and its loss."""
        from recbole.utils import get_trainer

        # The trainer writes its events for TensorBoard into the working directory.
        with mock.patch("recbole.trainer.trainer.get_tensorboard", lambda logger: mock.Mock()):
            trainer = get_trainer(self._settings["MODEL_TYPE"], self.config.model)(self._settings, self.network)
        for epoch in range(trainer.epochs):
            trainer.start_epoch, epochs, trainer.epochs = epoch, trainer.epochs, epoch + 1
            trainer.fit(self.loader, None, verbose=False, saved=False, show_progress=False)
            trainer.epochs = epochs
            yield epoch + 1, epochs, float(trainer.train_loss_dict[epoch])

    @property
    def _max_length(self) -> int:
        """Items of a history that a sequential model reads (RecBole's own default)."""
        return int(self.config.settings.get("MAX_ITEM_LIST_LENGTH", 50))

    def _validated(self, data: Interactions, rows: np.ndarray) -> float:
        return self.auc(data, rows) if self.kind == "context" else self.ndcg(data, rows)

    @torch.inference_mode()
    def scores(self, users: np.ndarray) -> torch.Tensor:
        from recbole.data.interaction import Interaction

        users = self.user_indices(users)
        if self.kind == "context":
            items = self.sizes["items"]
            of_pairs = self.score(np.repeat(users, items), np.tile(np.arange(items), len(users)))
            return torch.from_numpy(of_pairs).view(len(users), items).to(self.device)
        known = {"user_id": self._ids_of(users)}
        rows = torch.arange(len(users), device=self.device)
        if self.kind == "sequential":
            length = self._max_length
            latest, lengths = self.histories.latest(users, length)
            rows = on_device(np.flatnonzero(lengths), self.device)
            lists = torch.zeros(len(users), length, dtype=torch.int64, device=self.device)
            lists[:, : latest.shape[1]] = self.item_ids[on_device(latest, self.device)]
            ends = on_device(lengths, self.device)
            lists *= torch.arange(length, device=self.device) < ends[:, None]
            known |= {"item_id_list": lists, "item_length": ends}
        scores = torch.zeros(len(users), self.sizes["items"], device=self.device)
        if len(rows):
            queries = Interaction({name: value[rows] for name, value in known.items()})
            scores[rows] = self.network.full_sort_predict(queries).view(len(rows), -1)[:, self.item_ids].float()
        return scores

    @torch.inference_mode()
    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores of pairs, float32 ``[N]``; of context-aware models probabilities."""
        if self.kind != "context":
            return super().score(users, items)
        users, items = self.pairs(users, items)
        from recbole.data.interaction import Interaction

        scores = np.empty(len(users), dtype=np.float32)
        for first in range(0, len(users), _PAIRS):
            rows = slice(first, first + _PAIRS)
            ids = self.item_ids[on_device(items[rows], self.device)]
            pairs = Interaction({"user_id": self._ids_of(users[rows]).cpu(), "item_id": ids.cpu()})
            scores[rows] = self.network.predict(self.dataset.join(pairs).to(self.device)).cpu().numpy()
        return scores

    def _write_more(self, folder: Path) -> None:
        """The events of training go to ``dataset``, in RecBole's own text files."""
        assert self._folder is not None  # with what the model was built from
        shutil.copytree(Path(self._folder.name, _NAME), folder / _DATASET, copy_function=shutil.copyfile)

    def _restore(self, folder: Path, sizes: dict[str, int]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="reasonrec-fast-")
        shutil.copytree(folder / _DATASET, Path(self._folder.name) / _NAME)
        self.build(sizes)

    def _ids_of(self, users: np.ndarray) -> torch.Tensor:
        known = np.minimum(users, self.sizes["users"] - 1)
        ids = self.user_ids[on_device(known, self.device)]
        return torch.where(on_device(users == known, self.device), ids, 0)

    def _write(self, data: Interactions, train: np.ndarray) -> None:
        """The training events in RecBole's form, with indices as tokens; RecBole requires parts to validate and
        test on, which hold the first event alone."""
        self._folder = tempfile.TemporaryDirectory(prefix="reasonrec-fast-")
        folder = Path(self._folder.name) / _NAME
        folder.mkdir()
        if self.kind == "sequential":
            header = "user_id:token\titem_id_list:token_seq\titem_id:token"
            lines = _next_items(data, train, self._max_length)
            if not lines:
                raise DataError("train: expected a user with at least two positive events; got none")
        else:
            rows = train if self.kind == "context" else train[data.labels[train] == 1]
            header = "user_id:token\titem_id:token\tlabel:float"
            events = zip(data.users[rows].tolist(), data.items[rows].tolist(), data.labels[rows].tolist(), strict=True)
            lines = [f"{user}\t{item}\t{label}" for user, item, label in events]
        for part, part_lines in (("train", lines), ("valid", lines[:1]), ("test", lines[:1])):
            (folder / f"{_NAME}.{part}.inter").write_text("\n".join([header, *part_lines]) + "\n", encoding="utf-8")
        # Values as numbers, so that nothing in a name is taken for a separator.
        columns = [_numbered(column) for column in data.catalog.attributes.values()]
        items = ["\t".join(["item_id:token", *(f"a{number}:token_seq" for number in range(len(columns)))])]
        items += ["\t".join(map(str, row)) for row in zip(range(data.num_items), *columns, strict=True)]
        (folder / f"{_NAME}.item").write_text("\n".join(items) + "\n", encoding="utf-8")
        users = ["user_id:token", *map(str, range(data.num_users))]
        (folder / f"{_NAME}.user").write_text("\n".join(users) + "\n", encoding="utf-8")

    def _recbole_config(self) -> Any:
        from recbole.config import Config

        assert self._folder is not None

        class OurConfig(Config):
            """Without RecBole's parsing of the command line, which has no arguments of RecBole."""

            def _load_cmd_line(self) -> dict[str, Any]:
                return {}

        header = Path(self._folder.name, _NAME, f"{_NAME}.item").read_text(encoding="utf-8").split("\n", 1)[0]
        columns = [column.split(":")[0] for column in header.split("\t")]
        inter = {"general": ["user_id", "item_id"], "context": ["user_id", "item_id", "label"]}
        sequential = ["user_id", "item_id_list", "item_id"]
        cuda = self.device.type == "cuda"
        given = {
            "seed": self.config.seed,
            "epochs": self.config.epochs,
            **self.config.settings,
            "data_path": self._folder.name,
            "checkpoint_dir": self._folder.name,
            # RecBole unpickles what lies there, and a model may come from the hub.
            "dataset_save_path": None,
            "dataloaders_save_path": None,
            "save_dataset": False,
            "save_dataloaders": False,
            "benchmark_filename": ["train", "valid", "test"],
            "load_col": {
                "inter": inter.get(self.kind, sequential),
                "user": ["user_id"],
                "item": columns if self.kind == "context" else ["item_id"],
            },
            "use_gpu": cuda,
            "gpu_id": str(self.device.index or 0) if cuda else "",
            "show_progress": False,
        }
        if self.kind == "sequential":
            given |= {"alias_of_item_id": ["item_id_list"], "MAX_ITEM_LIST_LENGTH": self._max_length}
            given.setdefault("train_neg_sample_args", None)  # their usual loss is over all items
        if self.kind == "context":
            given |= {"train_neg_sample_args": None, "eval_args": {"mode": "labeled"}}
            given |= {"metrics": ["AUC"], "valid_metric": "AUC"}
        with mock.patch.dict(os.environ):  # RecBole would hide the other GPUs, or all, from the whole process
            config = OurConfig(model=self.config.model, dataset=_NAME, config_dict=given)
        config["device"] = self.device
        return config

    @contextlib.contextmanager
    def _seeded(self) -> Iterator[None]:
        """RecBole draws from the global generators, which are restored afterwards."""
        states = random.getstate(), np.random.get_state()
        with fork_rng(self.device):
            random.seed(self.config.seed)
            np.random.seed(self.config.seed)
            seed_rng(self.config.seed, self.device)
            try:
                yield
            finally:
                random.setstate(states[0])
                np.random.set_state(states[1])


def _next_items(data: Interactions, train: np.ndarray, length: int) -> list[str]:
    """One line for each item of a history that has one before it, with the last ``length`` of those before."""
    histories = Histories.of(data, train)
    lines = []
    for user in range(histories.num_users):
        items = [str(item) for item in histories.of_user(user).tolist()]
        lines += [
            f"{user}\t{' '.join(items[max(0, end - length) : end])}\t{items[end]}" for end in range(1, len(items))
        ]
    return lines


def _numbered(column: Sequence[tuple[str, ...]]) -> list[str]:
    index = {value: number for number, value in enumerate(distinct(column))}
    return [" ".join(str(index[value]) for value in entry) for entry in column]
