"""OptiRAG-Rec (ACL 2025 long 1283, arXiv 2501.02173): a GCN retrieves, a language model reads, and stops when sure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from reasonrec_fast import evaluation, uncertainty
from reasonrec_fast.data.interactions import UNLABELLED, Interactions
from reasonrec_fast.data.split import Split, sample_of_users
from reasonrec_fast.early_exit.backbone import Backbone
from reasonrec_fast.early_exit.engine import EarlyExitModel, ExitPolicy
from reasonrec_fast.files import read_json, replacing, write_json
from reasonrec_fast.models.optirag import training
from reasonrec_fast.models.optirag.backbone import load_language_model
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.dataset import RequestBuilder, Requests
from reasonrec_fast.models.optirag.evidence import NUMBERS
from reasonrec_fast.models.optirag.knowledge import Knowledge
from reasonrec_fast.models.optirag.prompt import Slate
from reasonrec_fast.models.optirag.retriever import Retriever

_ITEM_EVENTS = NUMBERS.index("item_events")
_ARCHITECTURE = "optirag"
_FORMAT = 1


@dataclass(frozen=True)
class Predictions:
    """Scores of ``N`` requests.

    Attributes:
        probability: of a like, float32 ``[N]``.
        depth: layers read, int64 ``[N]``.
    """

    probability: np.ndarray
    depth: np.ndarray


class OptiRAG:
    """CTR prediction by retrieved evidence, a language model and early exit.

    Make one with ``OptiRAG(config).fit(interactions, split)`` or :meth:`from_pretrained`.

    Args:
        config: settings.
    """

    def __init__(self, config: OptiRAGConfig | None = None) -> None:
        self.config = config or OptiRAGConfig()
        language_model, self.tokenizer = load_language_model(self.config.backbone)
        lora = LoraConfig(r=self.config.lora_rank, lora_alpha=self.config.lora_alpha, target_modules="all-linear")
        torch.manual_seed(self.config.seed)
        self.peft: Any = get_peft_model(language_model, lora)
        torch.manual_seed(self.config.seed)
        self.ranker = EarlyExitModel(
            Backbone(self.peft.get_base_model()),
            self.config.exits,
            num_numbers=len(NUMBERS),
            members=self.config.members,
        ).eval()
        self.mean = np.zeros(len(NUMBERS), dtype=np.float32)
        self.scale = np.ones(len(NUMBERS), dtype=np.float32)
        self.policy: ExitPolicy | None = None
        self.platt: dict[str, tuple[float, float]] = {}
        self.knowledge: Knowledge | None = None
        self._merged = False

    # Fitting

    def fit(
        self,
        interactions: Interactions,
        split: Split,
        *,
        checkpoint: str | Path | None = None,
        progress: training.Progress | None = None,
    ) -> OptiRAG:
        """Train the retriever, the adapters and the heads on the training part; calibrate on validation.

        Args:
            interactions: every event.
            split: its parts.
            checkpoint: file of the training state; a run that was killed goes on from it.
            progress: is told of every step.

        Raises:
            ValueError: a part without events, or with one class alone.
        """
        for name in ("train", "validation"):
            classes = np.unique(interactions.labels[getattr(split, name)])
            if len(classes) != 2:
                raise ValueError(f"split: expected both classes in {name}; got labels {classes.tolist()}")
        self.refit_retriever(interactions, split.train)
        builder = self._builder(interactions, split.train, self._known().retriever)
        requests = builder.training_requests()
        self.mean = requests.numbers.mean(0)
        self.scale = np.where(requests.numbers.std(0) > 1e-6, requests.numbers.std(0), 1.0).astype(np.float32)
        self.unmerge()
        training.warm_start(
            self.ranker,
            torch.from_numpy((requests.numbers - self.mean) / self.scale),
            torch.from_numpy(requests.labels),
            self.config.warm_start_steps,
            self.config.seed,
        )
        training.train(
            self.ranker, requests, self.mean, self.scale, self.config, checkpoint=checkpoint, progress=progress,
            fingerprint={"events": len(interactions), "train": len(split.train)},
        )  # fmt: skip
        chosen = sample_of_users(interactions, split.validation, self.config.calibration_requests, self.config.seed)
        self.calibrate(builder.requests(chosen), interactions.users[chosen])
        return self

    def refit_retriever(self, interactions: Interactions, train_rows: np.ndarray) -> None:
        """Train the retriever (seconds) and remember the training events; adapters and heads stay as they are."""
        events = Interactions(
            interactions.users[train_rows],
            interactions.items[train_rows],
            interactions.labels[train_rows],
            interactions.timestamps[train_rows],
            interactions.user_ids,
            interactions.catalog,
        )
        retriever = Retriever.train(events, np.arange(len(events)), self.config.retriever)
        self.knowledge = Knowledge(events, retriever)

    def calibrate(self, requests: Requests, users: np.ndarray) -> None:
        """Fit a temperature for every exit and choose the exit thresholds, on validation requests.

        Requests whose item somebody has rated and those whose item nobody has (cold) have thresholds of their own:
        only the text, deep in the model, knows anything of the latter.

        Args:
            requests: of the validation part.
            users: of each request, ``[N]``.
        """
        for head in self.ranker.heads:
            head.temperature.fill_(1.0)
        odds = self.exit_odds(requests)
        for head, values in zip(self.ranker.heads, odds, strict=True):
            head.temperature.fill_(uncertainty.fit_temperature(values, requests.labels))
        scaled = odds / np.array([float(head.temperature) for head in self.ranker.heads])[:, None, None]
        scores = (1 / (1 + np.exp(-scaled))).mean(2)
        confidence = np.abs(log_odds(scores))
        cold = self.strata(requests) == 1
        self.policy = ExitPolicy(_thresholds(scores, confidence, cold, requests.labels, users, self))
        tables = np.array(self.policy.thresholds)
        exited = np.empty_like(scores[-1])
        for stratum in (0, 1):
            rows = cold == bool(stratum)
            exited[rows], _ = uncertainty.simulate(scores[:, rows], confidence[:, rows], tables[stratum])
        for name, values in (("early_exit", exited), ("full_depth", scores[-1])):
            self.platt[name] = evaluation.fit_platt(requests.labels, log_odds(values))

    @torch.no_grad()
    def exit_odds(self, requests: Requests, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Log-odds of yes of every member at every exit, float64 ``[E, N, K]``, at the present temperatures."""
        self.merge()
        odds = np.empty((len(self.ranker.exits), len(requests.rows), self.config.members))
        for slates in _batched(requests.slates):
            groups, numbers, _ = requests.batch(slates, self.mean, self.scale)
            rows = numbers.shape[0]
            found = self.ranker.all_exits(groups, numbers, torch.ones(rows, dtype=torch.int64))
            places = np.concatenate([slate.rows for slate in slates])
            for exit_, statistics in enumerate(found):
                yes = statistics.target_logprob.double().numpy()
                odds[exit_, places] = yes - np.log(-np.expm1(np.minimum(yes, -1e-12)))
            if progress is not None:
                progress(rows)
        return odds

    # Predicting

    def requests(self, interactions: Interactions, rows: np.ndarray | None = None) -> Requests:
        """Evidence and prompts of requests.

        Args:
            interactions: requests and what the users did before them; users and items are matched with those of
                training by their identifiers, and may be new.
            rows: which rows are requests; all unlabelled ones by default.
        """
        rows = np.flatnonzero(interactions.labels == UNLABELLED) if rows is None else rows
        builder, places = self.request_builder(interactions)
        return builder.requests(places[rows])

    def request_builder(self, interactions: Interactions) -> tuple[RequestBuilder, np.ndarray]:
        """What :meth:`requests` prepares once for a table: a builder, and the place of each row in its table.

        Raises:
            RuntimeError: the model has no retriever yet.
        """
        joint, train_rows, places, retriever = self._known().extended(interactions)
        return self._builder(joint, train_rows, retriever), places

    def predict(
        self,
        requests: Requests,
        *,
        early_exit: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> Predictions:
        """Probabilities of a like, in the order of ``requests.rows``.

        Args:
            requests: from :meth:`requests`.
            early_exit: False reads every layer.
            progress: is told how many requests were just scored.
        """
        self.merge()
        probability = np.empty(len(requests.rows), dtype=np.float32)
        depth = np.empty(len(requests.rows), dtype=np.int64)
        strata = self.strata(requests)
        for slates in _batched(requests.slates):
            groups, numbers, _ = requests.batch(slates, self.mean, self.scale)
            places = np.concatenate([slate.rows for slate in slates])
            ranked = self.ranker.rank(
                groups, numbers, self.policy if early_exit else None, torch.from_numpy(strata[places])
            )
            probability[places], depth[places] = ranked.probability.numpy(), ranked.depth.numpy()
            if progress is not None:
                progress(len(places))
        return Predictions(probability, depth)

    def evaluate(self, interactions: Interactions, rows: np.ndarray, *, early_exit: bool = True) -> dict[str, float]:
        """AUC, GAUC (all, and on items without a training rating) and mean depth on labelled rows."""
        found = self.predict(self.requests(interactions, rows), early_exit=early_exit)
        labels, users = interactions.labels[rows], interactions.users[rows]
        events = self._known().events
        rated = set(np.unique(events.items))
        known = {name: place for place, name in enumerate(events.catalog.ids)}
        unrated = np.array(
            [known.get(interactions.catalog.ids[item]) not in rated for item in interactions.items[rows]]
        )
        return {
            "auc": evaluation.auc(labels, found.probability),
            "gauc": evaluation.gauc(labels, found.probability, users),
            "gauc_unrated": evaluation.gauc(labels[unrated], found.probability[unrated], users[unrated]),
            "mean_depth": float(found.depth.mean()),
        }

    @staticmethod
    def strata(requests: Requests) -> np.ndarray:
        """0 where somebody had rated the item, 1 where nobody had, int64 ``[N]``."""
        return (requests.numbers[:, _ITEM_EVENTS] <= 0).astype(np.int64)

    # Storing

    def save_pretrained(self, folder: str | Path, *, knowledge: bool = True) -> None:
        """Write the model as safetensors and JSON.

        Args:
            folder: is made where it is not there.
            knowledge: False leaves out the training events and the retriever; the model then needs
                :meth:`refit_retriever` before it can predict.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.unmerge()
        adapter = {name: p.detach().bfloat16() for name, p in self.peft.named_parameters() if "lora_" in name}
        with replacing(folder / "adapter.safetensors") as temporary:
            save_file(adapter, temporary)
        heads = {name: value.contiguous() for name, value in self.ranker.heads.state_dict().items()}
        heads["numbers.mean"], heads["numbers.scale"] = torch.from_numpy(self.mean), torch.from_numpy(self.scale)
        with replacing(folder / "heads.safetensors") as temporary:
            save_file(heads, temporary)
        if knowledge and self.knowledge is not None:
            self.knowledge.save(folder)
        policy = None
        if self.policy is not None:
            thresholds = [[None if np.isinf(t) else t for t in row] for row in self.policy.thresholds]
            policy = {"thresholds": thresholds, "measure": self.policy.measure, "trend": self.policy.trend}
        write_json(
            folder / "config.json",
            {
                "architecture": _ARCHITECTURE,
                "format": _FORMAT,
                "config": self.config.to_dict(),
                "policy": policy,
                "platt": self.platt,
            },
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, backbone: str | None = None) -> OptiRAG:
        """Read what :meth:`save_pretrained` wrote.

        Args:
            folder: the model.
            backbone: where the language model lies, if not where the configuration says.

        Raises:
            FileNotFoundError: there is no model in the folder.
            ValueError: the folder holds another architecture, or weights that do not fit the backbone.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"folder: expected a saved model with config.json; there is none in {folder}")
        stored = read_json(folder / "config.json")
        if stored.get("architecture") != _ARCHITECTURE or stored.get("format") != _FORMAT:
            raise ValueError(
                f"folder: expected an {_ARCHITECTURE} model of format {_FORMAT}; {folder} holds "
                f"{stored.get('architecture', stored.get('model_type'))!r} of format {stored.get('format')}"
            )
        values = dict(stored["config"])
        if backbone is not None:
            values["backbone"] = backbone
        model = cls(OptiRAGConfig.from_dict(values))
        _copy_weights(dict(model.peft.named_parameters()), load_file(folder / "adapter.safetensors"), "adapter")
        heads = load_file(folder / "heads.safetensors")
        model.mean, model.scale = heads.pop("numbers.mean").numpy(), heads.pop("numbers.scale").numpy()
        _copy_weights(model.ranker.heads.state_dict(), heads, "heads")
        if stored["policy"] is not None:
            policy = stored["policy"]
            thresholds = tuple(tuple(float("inf") if t is None else t for t in row) for row in policy["thresholds"])
            model.policy = ExitPolicy(thresholds, policy["measure"], policy["trend"])
        model.platt = {name: tuple(values) for name, values in stored["platt"].items()}
        if (folder / "events.safetensors").is_file():
            model.knowledge = Knowledge.load(folder)
        return model

    def _known(self) -> Knowledge:
        if self.knowledge is None:
            raise RuntimeError("the model has no retriever yet; call fit or refit_retriever")
        return self.knowledge

    def _builder(self, interactions: Interactions, train_rows: np.ndarray, retriever: Retriever) -> RequestBuilder:
        return RequestBuilder(interactions, train_rows, retriever, self.tokenizer, self.config)

    def merge(self) -> None:
        """Add the adapters to the weights: inference then costs no more than the plain model."""
        if not self._merged:
            self.peft.merge_adapter()
            self._merged = True

    def unmerge(self) -> None:
        """Take the adapters out again, so that they can train."""
        if self._merged:
            self.peft.unmerge_adapter()
            self._merged = False


def log_odds(probability: np.ndarray) -> np.ndarray:
    """``log(p / (1 - p))``, finite at 0 and 1.

    >>> log_odds(np.array([0.5])).tolist()
    [0.0]
    """
    bounded = np.clip(np.asarray(probability, dtype=np.float64), 1e-9, 1 - 1e-9)
    return np.log(bounded) - np.log1p(-bounded)


def _batched(slates: list[Slate], max_tokens: int = 2048) -> list[list[Slate]]:
    """Slates in batches of about ``max_tokens`` tokens."""
    batches: list[list[Slate]] = []
    filled = max_tokens
    for slate in slates:
        if filled + slate.num_tokens > max_tokens:
            batches.append([])
            filled = 0
        batches[-1].append(slate)
        filled += slate.num_tokens
    return batches


def _copy_weights(target: dict[str, torch.Tensor], source: dict[str, torch.Tensor], what: str) -> None:
    for name, value in source.items():
        if name not in target or target[name].shape != value.shape:
            raise ValueError(
                f"{what}: expected weights of this backbone; {name} {list(value.shape)} does not fit "
                f"{list(target[name].shape) if name in target else 'any parameter'}"
            )
        with torch.no_grad():
            target[name].copy_(value)


def _thresholds(
    scores: np.ndarray, confidence: np.ndarray, cold: np.ndarray, labels: np.ndarray, users: np.ndarray, model: OptiRAG
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Thresholds of requests with rated items, then of cold ones, within the configured losses."""
    config, depths = model.config, model.ranker.exits

    def over_all(part: np.ndarray, rest: np.ndarray) -> Callable[[np.ndarray], float]:
        """AUC of everything, with the scores of ``part`` given and the others at ``rest``."""

        def metric(values: np.ndarray) -> float:
            joint = rest.copy()
            joint[part] = values
            return evaluation.auc(labels, joint)

        return metric

    def cold_gauc(values: np.ndarray) -> float:
        return evaluation.gauc(labels[cold], values, users[cold])

    deepest = scores[-1]
    limits = [uncertainty.Limit(over_all(~cold, deepest), config.max_auc_loss)]
    warm = uncertainty.choose_thresholds(scores[:, ~cold], confidence[:, ~cold], depths, limits)
    nobody_leaves = tuple(float("inf") for _ in depths[:-1])
    if not cold.any() or np.isnan(cold_gauc(deepest[cold])):
        return warm, nobody_leaves
    limits = [
        uncertainty.Limit(over_all(cold, deepest), config.max_auc_loss),
        uncertainty.Limit(cold_gauc, config.max_cold_gauc_loss),
    ]
    return warm, uncertainty.choose_thresholds(scores[:, cold], confidence[:, cold], depths, limits)
