"""Runs side by side: whether they can be compared, and the paired differences of their scores."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from awcl_jax.evaluate.paired import classification_differences, mean_differences
from awcl_jax.evaluate.scores import Score
from awcl_jax.report.contents import Run
from awcl_jax.train.run_folder import FRAMES_FILE

Rows = Sequence[Mapping[str, str]]
"""Rows of a `test_frames.csv`: `frame`, `patient`, and `label` with `prediction`, or `dice/...` by structure."""

TITLES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "mean": "mean Dice"}
_SCORED_BY = ("eval.granularity", "eval.anatomies", "task.granularity", "task.anatomies", "task.empty_frames")


def numbered(texts: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Number texts from 0 in alphabetical order, the same by the same number.

    Not by NumPy, whose arrays of texts give each the length of the longest.
    """
    numbers = {text: number for number, text in enumerate(sorted(set(texts)))}
    return np.array([numbers[text] for text in texts])


def anatomies_of(*tables: Rows) -> list[str]:
    """Return the anatomies that occur in tables of planes, true or predicted, in alphabetical order."""
    return sorted({name for rows in tables for row in rows for name in (row["label"], row["prediction"])})


def dice_of(rows: Rows, structures: Sequence[str]) -> Float[np.ndarray, "n c"]:
    """Return the Dice of these columns, NaN where a frame does not count."""
    return np.array([[float(row[name]) if row[name] else math.nan for name in structures] for row in rows])


def frame_differences(rows: Rows, others: Rows) -> list[Score]:
    """Return the scores of one run minus those of another; as `seed_differences` of one seed."""
    return seed_differences([rows], [others])


def seed_differences(seeds: Sequence[Rows], others: Sequence[Rows]) -> list[Score]:
    """Return the scores of one method minus those of another on the same frames, over seeds and patients.

    Args:
      seeds: rows of each seed of one method; at least one seed and one row.
      others: of the other method with the same seeds. All have the same frames in the same order.

    Returns:
      As `paired.classification_differences` for planes, or `paired.mean_differences` of Dice for segmentation.

    Raises:
      InputError: in segmentation, the two runs count different frames.
    """
    rows = seeds[0]
    tables = (*seeds, *others)
    frames = [row["frame"] for row in rows]
    assert all([row["frame"] for row in table] == frames for table in tables), "the same frames in the same order"
    patients = numbered([row["patient"] for row in rows])
    if "prediction" in rows[0]:
        names = anatomies_of(*tables)
        numbers = {name: number for number, name in enumerate(names)}
        labels = np.array([numbers[row["label"]] for row in rows])
        one, two = (
            np.array([[numbers[row["prediction"]] for row in table] for table in method]) for method in (seeds, others)
        )
        return classification_differences(labels, one, two, patients, names=names)
    names = structures_of(rows)
    one, two = (np.array([dice_of(table, names) for table in method]) for method in (seeds, others))
    return mean_differences(one, two, patients, names=names, mean="mean")


@dataclasses.dataclass(frozen=True)
class Difference:
    """What a run's scores are above those of the first.

    Attributes:
      run: its name.
      cells: title of a score -> its difference and interval, and what follows from it.
      reason: why there are none, in a few words; otherwise empty.
      counts: the frames and patients that were compared.
    """

    run: str
    cells: Mapping[str, str]
    reason: str = ""
    counts: str = ""


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Return the difference of each run but the first to the first."""
    return [_difference(run, runs[0]) for run in runs[1:]]


def _difference(run: Run, first: Run) -> Difference:
    if run.task != first.task:
        return Difference(run.name, {}, "runs of another kind have other scores")
    for one in (run, first):
        if not one.test_frames:
            return Difference(
                run.name, {}, f"{one.name} has no {FRAMES_FILE}; run its command again to write it, if it has scores"
            )
    rows = _in_order_of(run.test_frames, first.test_frames)
    if rows is None:
        return Difference(run.name, {}, f"its test frames or their labels are not those of {first.name}")
    scores = [score for score in frame_differences(rows, first.test_frames) if score.name in TITLES]
    counts = f"{scores[0].frames:,} frames of {scores[0].patients:,} patients"
    return Difference(run.name, {TITLES[score.name]: _in_words(score) for score in scores}, counts=counts)


def _in_order_of(rows: Rows, wanted: Rows) -> Rows | None:
    """Return the rows in another table's order; None if they are of other frames, labels or structures."""
    by_frame = {row["frame"]: row for row in rows}
    frames = [row["frame"] for row in wanted]
    if len(by_frame) != len(rows) or by_frame.keys() != set(frames) or len(frames) != len(rows):
        return None
    ordered = [by_frame[frame] for frame in frames]
    same = all(
        (one["patient"], one.get("label")) == (other["patient"], other.get("label"))
        and [not one[name] for name in structures_of(rows)] == [not other.get(name) for name in structures_of(rows)]
        for one, other in zip(ordered, wanted, strict=True)
    )
    return ordered if same and structures_of(rows) == structures_of(wanted) else None


def structures_of(rows: Rows) -> list[str]:
    """Return the columns of a segmentation's Dice."""
    return [column for column in rows[0] if column.startswith("dice/")]


def _in_words(score: Score) -> str:
    if not score.low <= score.high:  # of one patient, without an interval
        return f"{score.value:+.3f} (one patient)"
    follows = "better" if score.low > 0 else "worse" if score.high < 0 else "no difference can be seen"
    return f"{score.value:+.3f} ({score.low:+.3f} to {score.high:+.3f}): {follows}"


def warnings(runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each reason why the scores of these runs may not be compared."""
    return list(_warnings(runs))


def _warnings(runs: Sequence[Run]) -> Iterator[str]:
    first = runs[0]
    for run in runs[1:]:
        both = f"{run.name} and {first.name}"
        if run.task != first.task:
            yield f"{both} are runs of different kinds ({_kind(run)}, {_kind(first)}): their scores differ in meaning."
            continue
        if run.data != first.data:
            yield f"{both} used different data (fingerprints {run.data}, {first.data}), so scores cannot be compared."
        elif {run.finished, first.finished} == {True} and run.results.get("frames") != first.results.get("frames"):
            yield f"{both} split the same data differently: the counts of frames below differ."
        elif run.config.get("seed") != first.config.get("seed") and run.config.get("data.val_share") is not None:
            yield (
                f"{both} have different seeds, so they differ by chance, too; data without a `val` split gives them "
                "other validation patients (the test patients are the same)."
            )
        differing = [name for name in _SCORED_BY if run.config.get(name) != first.config.get(name)]
        if differing:
            yield f"{both} are scored differently ({', '.join(differing)})."


def _kind(run: Run) -> str:
    return run.task or "pretraining"
