"""All that a study found as one file of plain values, for other programs and for who has only this file."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from awcl_jax.reproduce.finished import FROZEN, PROBES, Difference, Finished, results_of
from awcl_jax.reproduce.study import all_methods, pretraining_folder

STUDY_FILE = "study.json"


def as_json(
    finished: Finished, frozen: Sequence[Difference], differences: Mapping[str, Sequence[Difference]]
) -> dict[str, Any]:
    """Return all scores, the noise and all differences as plain values.

    Args:
      finished: the runs.
      frozen: the `differences_of` frozen features.
      differences: name of a task -> its `differences_of`.
    """
    study = finished.study
    return {
        "study": study.name,
        "seeds": list(study.seeds),
        "repeats": study.repeats,
        "runs": list(_runs(finished)),
        "learning_curves": {
            method.name: {str(seed): list(curve.items()) for seed, curve in finished.learning_curves(method).items()}
            for method in study.methods
        },
        "noise": {
            "frozen": {score: finished.noise(score) for score in PROBES},
            **{task.name: {score: finished.noise(score, task) for score in task.scores} for task in study.tasks},
        },
        "differences": {
            "frozen": {"score": FROZEN, "of": list(_plain(frozen))},
            **{
                task.name: {"score": task.compared[0], "of": list(_plain(differences[task.name]))}
                for task in study.tasks
            },
        },
    }


def _plain(differences: Sequence[Difference]) -> Iterator[dict[str, Any]]:
    for one in differences:
        bounds = {part: _finite(getattr(one.score, part)) for part in ("value", "low", "high")}
        yield {"method": one.method, "other": one.other, "counts": one.counts} | bounds


def _runs(finished: Finished) -> Iterator[dict[str, Any]]:
    """Yield the scores of every finished run."""
    study, out = finished.study, finished.out
    which = [*((seed, 0) for seed in study.seeds), *((study.seeds[0], n + 1) for n in range(study.repeats))]
    for method in (*all_methods(study), *study.variations):
        for seed, repeat in which:
            about = {"method": method.name, "seed": seed, "repeat": repeat}
            if found := results_of(pretraining_folder(out, method, seed, repeat)):
                frozen = {column: found[column] for column in ("untrained", "trained") if column in found}
                yield about | {"task": "frozen", "scores": frozen}
            for task in study.tasks:
                folder = study.task_folder(out, task, method, seed, repeat)
                if folder is not None and (found := results_of(folder)):
                    rate = study.chosen_rate(out, task, method)
                    yield about | {"task": task.name, "learning_rate": rate, "scores": found["test"]}


def _finite(number: float) -> float | None:
    return number if np.isfinite(number) else None
