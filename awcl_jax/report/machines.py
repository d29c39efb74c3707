"""A run's scores by ultrasound machine, from its `test_frames.csv`."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from awcl_jax.evaluate.scores import Score, classification_scores, mean_scores, scores_as_json
from awcl_jax.report.comparison import TITLES, Rows, anatomies_of, dice_of, numbered, structures_of
from awcl_jax.report.contents import Run
from awcl_jax.report.tables import MOST_SHOWN, Cell, as_cell

_UNKNOWN = "not known"
_MOST = 50  # machines of a table


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

    Empty if the run has not stored its machines, if all are the same one, or if there are more than `_MOST` machines or
    `MOST_SHOWN` anatomies or structures.
    """
    if not run.test_frames or "machine" not in run.test_frames[0]:
        return []
    rows_of: dict[str, list[Mapping[str, str]]] = {}
    for row in run.test_frames:
        rows_of.setdefault(row["machine"], []).append(row)
    if not 2 <= len(rows_of) <= _MOST or _kinds(run.test_frames) > MOST_SHOWN:
        return []
    training = run.results.get("machines")
    return [
        Machine(
            name or _UNKNOWN,
            None if training is None else training.get(name, 0),
            len(rows),
            len({row["patient"] for row in rows}),
            {TITLES[score.name]: _as_cell(score) for score in _scores(rows) if score.name in TITLES},
        )
        for name, rows in sorted(rows_of.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def _kinds(rows: Rows) -> int:
    """Return how many anatomies or structures have a score."""
    if "prediction" in rows[0]:
        return len(anatomies_of(rows))
    return len(structures_of(rows))


def _scores(rows: Rows) -> list[Score]:
    patients = numbered([row["patient"] for row in rows])
    if "prediction" in rows[0]:
        names = anatomies_of(rows)
        numbers = {name: number for number, name in enumerate(names)}
        labels, predictions = (np.array([numbers[row[name]] for row in rows]) for name in ("label", "prediction"))
        return classification_scores(labels, predictions, patients, names=names)
    structures = structures_of(rows)
    values = dice_of(rows, structures)
    return mean_scores(values, patients, names=structures, mean="mean") if np.isfinite(values).any() else []


def _as_cell(score: Score) -> Cell:
    return as_cell(scores_as_json([score])[score.name])
