"""The finished runs of a study: their scores, their differences, and how much a score moves without any reason."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from awcl_jax.evaluate.scores import Score
from awcl_jax.report.comparison import seed_differences
from awcl_jax.reproduce.study import Method, Study, Task, pretraining_folder
from awcl_jax.train import run_folder
from awcl_jax.train.metrics import METRICS_FILE, read_metrics

PROBES = {"knn/macro_f1": "kNN macro-F1", "probe/macro_f1": "linear probe macro-F1"}
"""Scores of frozen features, with their titles."""

FROZEN = "knn/macro_f1"
"""The score of frozen features by which methods are compared: runs have its prediction for every test frame."""

_VALIDATED = "val/knn/macro_f1"


@dataclasses.dataclass(frozen=True)
class Finished:
    """The finished runs of a study.

    Attributes:
      study: the study.
      out: its folder.
    """

    study: Study
    out: Path

    def scores(self, task: Task, method: Method, score: str, *, repeated: bool = False) -> list[dict[str, float]]:
        """Return a test score of every finished seed: `value`, and its interval, `low` to `high`.

        Args:
          task: of the runs.
          method: of their encoders.
          score: its name.
          repeated: of the first seed and its repeats instead.
        """
        folders = (self.study.task_folder(self.out, task, method, *which) for which in self._which(repeated))
        results = (results_of(folder) for folder in folders if folder is not None)
        return [found["test"][score] for found in results if found and score in found["test"]]

    def probes(self, method: Method, score: str, *, repeated: bool = False) -> list[dict[str, float]]:
        """Return a score of the frozen features of every finished seed, as reported by pretraining.

        For a method without pretraining: of the starting point of another method. Arguments as of `scores`.
        """
        column, source = "trained", method
        if method.config is None:
            column = "untrained"
            starts = (
                other
                for other in self.study.methods
                if other.config
                and other.encoder == method.encoder
                and other.fields.get("model.init", "random") == method.init
            )
            found = next(starts, None)
            if found is None:
                return []
            source = found
        results = (results_of(pretraining_folder(self.out, source, *which)) for which in self._which(repeated))
        return [result[column][score] for result in results if result]

    def learning_curves(self, method: Method) -> dict[int, dict[int, float]]:
        """Return seed -> step -> kNN macro-F1 on validation patients, of the pretraining runs that are finished."""
        curves = {}
        for seed in self.study.seeds if method.config else ():
            folder = pretraining_folder(self.out, method, seed)
            metrics = folder / METRICS_FILE
            if results_of(folder) and metrics.is_file():
                lines = read_metrics(metrics)
                curves[seed] = {line["step"]: line[_VALIDATED] for line in lines if _VALIDATED in line}
        return curves

    def _which(self, repeated: bool) -> list[tuple[int, int]]:
        """Return seeds and repeats."""
        if repeated:
            return [(self.study.seeds[0], repeat) for repeat in range(self.study.repeats + 1)]
        return [(seed, 0) for seed in self.study.seeds]

    def noise(self, score: str, task: Task | None = None) -> float | None:
        """Return the standard deviation of a score between repeats, pooled over the methods; None without repeats.

        Args:
          score: its name.
          task: that has it; None for frozen features.
        """
        # Methods without pretraining have the frozen features that others start from.
        methods = [method for method in self.study.methods if task or method.config]
        return _pooled_deviation(
            [
                found["value"]
                for found in (
                    self.scores(task, method, score, repeated=True)
                    if task
                    else self.probes(method, score, repeated=True)
                )
            ]
            for method in methods
        )

    def difference(self, task: Task | None, method: Method, other: Method) -> Score | None:
        """Return the gain of `method` in the task's first score, paired by seed and frame.

        Args:
          task: of the runs; None for frozen features, by nearest neighbours.
          method: of their encoders.
          other: likewise. None is returned if no seed has finished runs of both.
        """
        rows, others = [], []
        for seed in self.study.seeds:
            folders = [
                self.study.task_folder(self.out, task, m, seed) if task else pretraining_folder(self.out, m, seed)
                for m in (method, other)
            ]
            finished = [folder for folder in folders if folder and results_of(folder)]
            files = [file for folder in finished if (file := folder / run_folder.FRAMES_FILE).is_file()]
            if len(files) == 2:
                rows.append(run_folder.read_frames(files[0]))
                others.append(run_folder.read_frames(files[1]))
        if not rows:
            return None
        scores = seed_differences(rows, others)
        return next(score for score in scores if score.name in ("macro_f1", "mean"))


@dataclasses.dataclass(frozen=True)
class Difference:
    """The gain of a method over another in a task's first score.

    Attributes:
      method: its name.
      other: name of the other.
      score: the difference with its interval.
      noise: deviation of the score between repeats; None without repeats.
    """

    method: str
    other: str
    score: Score
    noise: float | None

    @property
    def counts(self) -> bool:
        """Whether it is called a difference: the interval does not contain 0, and it is at least twice the noise."""
        clear = self.score.low > 0 or self.score.high < 0
        return self.noise is not None and clear and abs(self.score.value) >= 2 * self.noise


def differences_of(finished: Finished, task: Task | None) -> list[Difference]:
    """Return the differences of all pairs of methods, in both directions; `task` as of `Finished.difference`."""
    noise = finished.noise(task.compared[0] if task else FROZEN, task)
    pairs = itertools.permutations(finished.study.methods, 2)
    scores = ((one, other, finished.difference(task, one, other)) for one, other in pairs)
    return [Difference(one.name, other.name, score, noise) for one, other, score in scores if score is not None]


def _pooled_deviation(groups: Iterable[Sequence[float]]) -> float | None:
    """Return the standard deviation within groups; None if no group has two values."""
    several = [np.asarray(group, float) for group in groups if len(group) > 1]
    if not several:
        return None
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in several)
    return float(np.sqrt(squares / sum(len(group) - 1 for group in several)))


def results_of(folder: Path) -> dict[str, Any] | None:
    """Return `results.json` of a run; None if it is not finished."""
    return run_folder.read_results(folder) or None


def bound_of(score: Mapping[str, float | None], part: str) -> float:
    """Return a score or an end of its interval; the score itself if too few patients leave no interval."""
    bound = score.get(part)
    value = score["value"] if bound is None else bound
    assert value is not None
    return value
