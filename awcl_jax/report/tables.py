"""The tables of a run's page: facts, scores, confusion matrix, composition of the batches."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from awcl_jax.evaluate.table import FEATURE_ROWS, PLANES_ROWS, SEGMENTATION_ROWS
from awcl_jax.report.contents import Run, as_text

_METHODS = {
    "anatomy": "AWCL: frames of one anatomy attract each other",
    "scan": "patient metadata: frames of one scan attract each other",
    "frame": "a frame's own views attract each other",
}
_COLUMNS = {"test": "chosen model"}
_HEADLINES = {name: title for title, name in (*FEATURE_ROWS.items(), *PLANES_ROWS.items(), *SEGMENTATION_ROWS.items())}


def facts(run: Run) -> list[tuple[str, str]]:
    """Return the run in a few lines: (title, value)."""
    planned = run.config.get("train.steps")
    lines = [("Kind", _kind(run))]
    lines.append(("Steps", f"{run.steps:,} of {planned:,}" if isinstance(planned, int) else f"{run.steps:,}"))
    if "chosen_step" in run.results:
        lines.append(("Chosen checkpoint", f"step {run.results['chosen_step']:,}"))
    if run.task:
        lines.append(("Encoder", as_text(run.config.get("encoder.init"))))
    if initial := run.results.get("initial"):
        lines.append(("Started from", f"{initial['source']}: {initial['loaded']}; new: {initial['new']}"))
    lines.append(("Network", f"{run.config.get('model.arch')}, width {run.config.get('model.width_factor')}"))
    lines.append(("Dataset", _dataset(run)))
    lines.append(("Batch size", as_text(run.config.get("sampler.batch_size"))))
    lines.append(("Seed", as_text(run.config.get("seed"))))
    speeds = sorted(value for _, value in run.series.get("frames_per_second", ()) if math.isfinite(value))
    if speeds:
        lines.append(("Speed", f"{speeds[len(speeds) // 2]:,.0f} frames per second (median)"))
    if isinstance(memory := run.results.get("peak_memory_mb"), int | float):
        lines.append(("Peak memory", f"{memory:,.0f} MB"))
    return lines


def _kind(run: Run) -> str:
    if run.task:
        return f"downstream: {'standard planes' if run.task == 'planes' else run.task}"
    method = _METHODS.get(str(run.config.get("positives")), as_text(run.config.get("positives")))
    if run.config.get("positives") == "anatomy":
        method += f" ({run.config.get('granularity')})"
    queue = run.config.get("queue.size")
    return f"pretraining, {method}" + (f", with a queue of {as_text(queue)}" if queue else "")


def _dataset(run: Run) -> str:
    dataset = " and ".join(one.title for one in run.datasets)
    fingerprint = run.results.get("data")
    return f"{dataset} (fingerprint {fingerprint})" if fingerprint else dataset


def frame_counts(run: Run) -> list[tuple[str, list[int]]]:
    """Return (split, [frames, labelled, scans, patients]) for each split."""
    counts = run.results.get("frames", {})
    return [(split, [n[key] for key in ("frames", "labelled", "scans", "patients")]) for split, n in counts.items()]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A score as displayed.

    Attributes:
      text: value and interval.
      counts: the frames and patients it was measured on.
      whisker: (low, value, high) in percent of a line from 0 to 1; None if the score is not a share.
    """

    text: str
    counts: str
    whisker: tuple[float, float, float] | None


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """Scores of one or more runs.

    Attributes:
      groups: (name of a run, titles of its columns).
      headlines: (title, a cell for each column, None where it has no such score).
      details: likewise, all other scores.
    """

    groups: list[tuple[str, list[str]]]
    headlines: list[tuple[str, list[Cell | None]]]
    details: list[tuple[str, list[Cell | None]]]


def score_table(runs: Sequence[Run]) -> ScoreTable:
    """Return all scores of these runs, one row for each name."""
    columns = [scores for run in runs for scores in run.scores.values()]
    names = list(dict.fromkeys(name for scores in columns for name in scores))
    known = [name for name in _HEADLINES if name in names]

    def row(title: str, name: str) -> tuple[str, list[Cell | None]]:
        share = not name.endswith("_mm")
        return title, [as_cell(scores[name], share=share) if name in scores else None for scores in columns]

    return ScoreTable(
        [(run.name, [_COLUMNS.get(column, column) for column in run.scores]) for run in runs],
        [row(_HEADLINES[name], name) for name in known],
        [row(name, name) for name in names if name not in known],
    )


def as_cell(score: Mapping[str, Any], *, share: bool = True) -> Cell:
    """Return a score of `results.json` as displayed; `share` if it is from 0 to 1."""
    value, low, high = (score.get(key) for key in ("value", "low", "high"))
    interval = "one patient" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    counts = f"{score.get('frames', 0):,} frames of {score.get('patients', 0):,} patients"
    if value is None:
        return Cell("not defined", counts, None)
    ends = (value if low is None else low, value, value if high is None else high)
    whisker = tuple(round(100 * end, 1) for end in ends) if share and 0 <= min(ends) <= max(ends) <= 1 else None
    return Cell(f"{value:.3f} ({interval})", counts, whisker)


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Counts of true and predicted anatomies.

    Attributes:
      by: the predictor.
      names: of the anatomies that occur.
      rows: (true anatomy, its frames, (count, tenths of them) for each predicted anatomy).
      right: frames on the diagonal.
      frames: all frames.
    """

    by: str
    names: list[str]
    rows: list[tuple[str, int, list[tuple[int, int]]]]
    right: int
    frames: int


MOST_SHOWN = 200  # anatomies of a confusion matrix on the page


def confusion(run: Run) -> Confusion | None:
    """Return the confusion matrix of a run, without anatomies that are neither true nor predicted anywhere.

    None if the run has none, if no frame was scored, or if more than `MOST_SHOWN` anatomies remain: a browser shows no
    table of that size well.
    """
    names = run.results.get("anatomies")
    by, counts = "the model", run.results.get("confusion")
    if counts is None:
        by, counts = "the nearest neighbours of the trained encoder's features", run.results.get("knn_confusion")
    if not counts or not names:
        return None
    predicted = [sum(column) for column in zip(*counts, strict=True)]
    present = [c for c in range(len(names)) if sum(counts[c]) or predicted[c]]
    if not present or len(present) > MOST_SHOWN:
        return None
    rows = []
    for c in present:
        total = sum(counts[c])
        rows.append((names[c], total, [(counts[c][d], round(10 * counts[c][d] / max(total, 1))) for d in present]))
    right = sum(counts[c][c] for c in present)
    return Confusion(by, [names[c] for c in present], rows, right, sum(map(sum, counts)))


@dataclasses.dataclass(frozen=True)
class Composition:
    """The composition of batches by anatomy.

    Attributes:
      batches: number of batches counted.
      rows: (anatomy, training frames, their share in percent, frames in batches, their share in percent).
      repeated: a sentence for each anatomy that is rare in the data and common in batches.
    """

    batches: int
    rows: list[tuple[str, int, float, int, float]]
    repeated: list[str]


_MUCH_MORE = 3  # times its share of the training frames, from which on an anatomy counts as common in batches


def composition(run: Run) -> Composition | None:
    """Return how often each anatomy was in batches, and in the training frames."""
    counts = run.results.get("batches")
    if not counts:
        return None
    training, drawn = counts["training_frames"], counts["drawn"]
    of_training, of_drawn = (100 / max(sum(frames), 1) for frames in (training, drawn))
    rows = [
        (name, n, round(n * of_training, 1), m, round(m * of_drawn, 1))
        for name, n, m in zip(counts["anatomies"], training, drawn, strict=True)
        if n
    ]
    repeated = [
        f"{name} is rare in the data and common in batches: {share}% of the training frames, {drawn_share}% of the "
        f"frames in batches. On average each of its {n:,} frames was drawn {m / n:.1f} times"
        for name, n, share, m, drawn_share in rows
        if n * of_training * _MUCH_MORE <= m * of_drawn
    ]
    return Composition(counts["batches"], rows, repeated)


def settings(runs: Sequence[Run]) -> Iterator[tuple[str, list[str], bool]]:
    """Yield (field, its value in each run, whether these differ); "" where a run has no such field."""
    for name in sorted({name for run in runs for name in run.config}):
        values = [as_text(run.config[name]) if name in run.config else "" for run in runs]
        yield name, values, len(set(values)) > 1
