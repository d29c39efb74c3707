"""What there is to tell of a run, read from its folder alone, so that an old run can be told of again."""

import base64
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from awcl_jax.report import curves
from awcl_jax.report.embedding_map import MAP_FILE, FrameMap
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.metrics import METRICS_FILE
from awcl_jax.train.run_folder import CONFIG_FILE, are_scores, flattened, read_results, read_run_config

Scores = Mapping[str, Mapping[str, Any]]
"""Name of a score -> `value`, `low`, `high`, `frames` and `patients`."""

_PICTURES = {
    "pairs.png": (
        "Positive pairs",
        "Frames that the loss pulls together, side by side, with their scan and anatomy.",
    ),
    "views.png": ("Augmented views", "Frames beside augmented views of them, as the encoder sees them."),
    "embeddings.png": (
        "Before and after",
        "The map of the test frames by the untrained and by the trained encoder, by anatomy and by scan.",
    ),
    "overlays.png": (
        "Segmentation overlays",
        "The worst test frames and those about the median, outlined: the reference solid, the prediction dashed.",
    ),
    "head_circumference.png": (
        "Head circumference",
        "Differences between measured and reference head circumference over their mean, with limits of agreement.",
    ),
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the run's folder.

    Attributes:
      file: its name.
      title: what it shows.
      alt: in a sentence, for those who do not see it.
      png: in base64.
    """

    file: str
    title: str
    alt: str
    png: str


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a run's folder tells.

    Attributes:
      name: of the folder.
      config: `group.field` -> value.
      results: what `results.json` holds; nothing before the run has ended.
      series: [points, 2] step and value of each number of the metrics.
      scores: encoder or model -> its scores.
      frames: the map of embeddings, where there is one.
      pictures: by file name.
    """

    name: str
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    series: Mapping[str, Float[np.ndarray, "points 2"]]
    scores: Mapping[str, Scores]
    frames: FrameMap | None
    pictures: Mapping[str, Picture]

    @property
    def finished(self) -> bool:
        """Whether there are results."""
        return bool(self.results)

    @property
    def task(self) -> str | None:
        """What a downstream run learns; None for pretraining."""
        return self.config.get("task.kind")

    @property
    def steps(self) -> int:
        """How many steps the metrics tell of."""
        return int(max((points[-1, 0] for points in self.series.values()), default=0))


def read_run(folder: Path) -> Run:
    """Read all that the page of a run shows.

    Raises:
      InputError: the folder is not there or holds no run, or a file in it is damaged.
      OSError: a file cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: give the folder of a run.")
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder} holds no run ({CONFIG_FILE} is missing): give the folder that --workdir named.")
    config = read_run_config(folder)["config"]
    results = read_results(folder)
    metrics, frames = folder / METRICS_FILE, folder / MAP_FILE
    # Before its first line the file is there, and empty.
    begun = metrics.is_file() and metrics.stat().st_size > 0
    return Run(
        folder.resolve().name,
        dict(flattened(config)),
        results,
        curves.read_series(metrics) if begun else {},
        {column: value for column, value in results.items() if are_scores(value)},
        FrameMap.load(frames) if frames.is_file() else None,
        {file: _picture(folder / file) for file in _PICTURES if (folder / file).is_file()},
    )


def _picture(path: Path) -> Picture:
    title, alt = _PICTURES[path.name]
    return Picture(path.name, title, alt, base64.b64encode(path.read_bytes()).decode())


def said(value: Any) -> str:
    """Return a value of the configuration as a short text."""
    return value if isinstance(value, str) and value else json.dumps(value)
