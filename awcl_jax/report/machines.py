"""A run's scores by ultrasound machine, from its `test_frames.csv`."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np

from awcl_jax.evaluate.scores import Score, classification_scores, mean_scores, scores_as_json
from awcl_jax.report.comparison import Rows
from awcl_jax.report.contents import Run
from awcl_jax.report.tables import MOST_SHOWN, Cell, as_cell

_TITLES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "mean": "mean Dice"}
_UNKNOWN = "not known"


@dataclasses.dataclass(frozen=True)
class Machine:
    """The test frames of a machine.

    Attributes:
      name: of the machine.
      training_frames: of all training frames those that it made; None if the run did not count them.
      frames, patients: in the test.
      scores: title -> score; empty if nothing can be scored.
    """

    name: str
    training_frames: int | None
    frames: int
    patients: int
    scores: dict[str, Cell]


def by_machine(run: Run) -> list[Machine]:
    """Return a run's scores on the test frames of each machine, the commonest first.

    Empty if the run has not stored its machines, or if all are the same one, or more than `MOST_SHOWN`.
    """
    if not run.test_frames or "machine" not in run.test_frames[0]:
        return []
    counts = Counter(row["machine"] for row in run.test_frames)
    if not 2 <= len(counts) <= MOST_SHOWN:
        return []
    training = run.results.get("machines")
    found = []
    for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        rows = [row for row in run.test_frames if row["machine"] == name]
        found.append(
            Machine(
                name or _UNKNOWN,
                None if training is None else training.get(name, 0),
                len(rows),
                len({row["patient"] for row in rows}),
                {_TITLES[score.name]: _as_cell(score) for score in _scores(rows) if score.name in _TITLES},
            )
        )
    return found


def _scores(rows: Rows) -> Iterator[Score]:
    patients = np.unique([row["patient"] for row in rows], return_inverse=True)[1]
    if "prediction" in rows[0]:
        names, numbers = np.unique([[row["label"], row["prediction"]] for row in rows], return_inverse=True)
        labels, predictions = numbers.reshape(-1, 2).T
        yield from classification_scores(labels, predictions, patients, names=names.tolist())
        return
    structures = [column for column in rows[0] if column.startswith("dice/")]
    values = np.array([[float(row[name]) if row[name] else math.nan for name in structures] for row in rows])
    if np.isfinite(values).any():
        yield from mean_scores(values, patients, names=structures, mean="mean")


def _as_cell(score: Score) -> Cell:
    return as_cell(scores_as_json([score])[score.name])
