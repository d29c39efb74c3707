"""A run's scores as a Markdown table."""

from collections.abc import Mapping, Sequence

from awcl_jax.evaluate.scores import Score
from awcl_jax.runtime.errors import InputError

FEATURE_ROWS: Mapping[str, str] = {
    "kNN accuracy": "knn/accuracy",
    "kNN macro-F1": "knn/macro_f1",
    "Linear probe accuracy": "probe/accuracy",
    "Linear probe macro-F1": "probe/macro_f1",
}
"""Rows for frozen features: title -> name of the score."""

PLANES_ROWS: Mapping[str, str] = {
    "accuracy": "accuracy",
    "macro-F1": "macro_f1",
    "macro precision": "macro_precision",
    "macro recall": "macro_recall",
}
"""Rows for a classification of planes."""

SEGMENTATION_ROWS: Mapping[str, str] = {
    "Dice": "dice/mean",
    "IoU": "iou/mean",
    "false positives": "false_positives/mean",
    "HC error (mm)": "hc/mae_mm",
    "HC bias (mm)": "hc/bias_mm",
    "HC limits: low": "hc/limit_low_mm",
    "HC limits: high": "hc/limit_high_mm",
}
"""Rows for a segmentation."""

TASK_ROWS: Mapping[str, Mapping[str, str]] = {"planes": PLANES_ROWS, "segmentation": SEGMENTATION_ROWS}
"""Kind of a downstream task -> its rows."""


def results_table(columns: Mapping[str, Sequence[Score]], *, rows: Mapping[str, str] = FEATURE_ROWS) -> str:
    """Return a Markdown table of scores with their 95% intervals and the number of test frames and patients.

        >>> print(results_table({"untrained": before, "trained": after}))

    Args:
      columns: title -> scores of one encoder.
      rows: title -> name of a score; rows without a value in any column are left out.

    Returns:
      the table, and under it the counts of test frames and patients (per column if they differ).

    Raises:
      InputError: no column has any of these scores.
    """
    named = {title: {score.name: score for score in scores} for title, scores in columns.items()}
    shown = {title: name for title, name in rows.items() if any(name in scores for scores in named.values())}
    if not shown:
        raise InputError(f"No column of {list(columns)} has a score named {', '.join(rows.values())}.")
    lines = [["", *columns]]
    for title, name in shown.items():
        lines.append([title, *(str(scores[name]) if name in scores else "-" for scores in named.values())])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    table = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([*table, "", _counts(named, set(shown.values()))])


def _counts(columns: Mapping[str, Mapping[str, Score]], names: set[str]) -> str:
    counts = {
        title: sorted(
            {f"{s.frames:,} frames of {s.patients:,} patients" for name, s in scores.items() if name in names}
        )
        for title, scores in columns.items()
    }
    kinds = {count for column in counts.values() for count in column}
    tested = kinds.pop() if len(kinds) == 1 else "; ".join(f"{title}: {', '.join(c)}" for title, c in counts.items())
    return f"Tested on {tested}. In parentheses: 95% interval (bootstrap over patients)."
