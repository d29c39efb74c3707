"""The numbers of a run over its steps, and their panels."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from awcl_jax.runtime.errors import InputError
from awcl_jax.train.metrics import read_metrics

_MEANINGS = {
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "spread": "Spread (1: uniform, 0: collapsed)",
    "alignment": "Alignment of two views (0: equal)",
    "uniformity": "Uniformity (lower is more even)",
    "effective_rank": "Effective rank (dimensions used)",
    "retrieval": "Found again on validation patients, without labels (1: always)",
    "gradient_norm": "Gradient norm",
    "frames_per_second": "Frames per second",
    "data_wait_share": "Share of time spent waiting for data",
    "batch": "Composition of the batches",
    "knn": "Nearest neighbours",
    "knn/f1": "Nearest neighbours, F1 by anatomy",
    "probe": "Linear probe",
    "probe/f1": "Linear probe, F1 by anatomy",
    "val": "Validation patients",
    "val/knn": "Nearest neighbours, validation patients",
    "val/probe": "Linear probe, validation patients",
    "val/dice_of": "Dice by structure, validation patients",
}


def read_series(path: Path) -> dict[str, Float[np.ndarray, "points 2"]]:
    """Read step and value of every number in a run's `metrics.jsonl`.

    Raises:
      InputError: the file does not exist, is not a metrics file, or has no numbers yet.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for record in read_metrics(path):
        for name in record.keys() - {"step"}:
            points.setdefault(name, []).append((record["step"], record[name]))
    if not points:
        raise InputError(f"{path} has no numbers yet. Wait until the run has done a few steps.")
    return {name: np.array(sorted(values), np.float64) for name, values in points.items()}


def panels(names: Iterable[str]) -> dict[str, list[str]]:
    """Group numbers into panels, the loss first: those with the same text before their last slash."""
    found: dict[str, list[str]] = {}
    for name in sorted(names, key=_reading_order):
        found.setdefault(name.rpartition("/")[0] or name, []).append(name)
    return found


def title_of(panel: str) -> str:
    """Return the title of a panel."""
    return _MEANINGS.get(panel, panel.replace("_", " ").capitalize())


def label_of(name: str) -> str:
    """Return a number's name within its panel."""
    return name.rpartition("/")[2].replace("_f1", "-F1").replace("_", " ")


def _reading_order(name: str) -> tuple[int, str]:
    known = list(_MEANINGS)
    return (known.index(name) if name in known else len(known) + ("/" in name), name)
