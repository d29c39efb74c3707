"""The contents of a run's page, read from its folder only, so that the page of an old run can be made again."""

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from awcl_jax.data import about
from awcl_jax.data.about import About
from awcl_jax.report import curves
from awcl_jax.report.embedding_map import MAP_FILE, FrameMap
from awcl_jax.runtime.errors import InputError, first_line
from awcl_jax.runtime.files import require_plain_tree
from awcl_jax.train.metrics import METRICS_FILE
from awcl_jax.train.run_folder import (
    CONFIG_FILE,
    FRAMES_FILE,
    are_scores,
    flattened,
    read_frames,
    read_results,
    read_run_config,
)

Scores = Mapping[str, Mapping[str, Any]]
"""Name of a score -> `value`, `low`, `high`, `frames` and `patients`."""

_PICTURES = {
    "pairs.png": (
        "Positive pairs",
        "Frames that attract each other in the loss, side by side, with their scan and anatomy.",
    ),
    "views.png": ("Augmented views", "Frames beside their augmented views, the input of the encoder."),
    "embeddings.png": (
        "Before and after",
        "The map of the test frames by the untrained and the trained encoder, coloured by anatomy and by scan.",
    ),
    "overlays.png": (
        "Segmentation overlays",
        "The worst test frames and those near the median, with outlines: reference solid, prediction dashed.",
    ),
    "head_circumference.png": (
        "Head circumference",
        "Difference between measured and reference head circumference against their mean, with limits of agreement.",
    ),
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the run's folder.

    Attributes:
      file: its name.
      title: what it shows.
      alt: a description in one sentence, for people who cannot see it.
      png: in base64.
    """

    file: str
    title: str
    alt: str
    png: str


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The contents of a run's folder.

    Attributes:
      name: of the folder.
      config: `group.field` -> value.
      datasets: that it trained on, the labelled one first.
      results: contents of `results.json`; empty before the run has ended.
      series: [points, 2] step and value of each number of the metrics.
      scores: encoder or model -> its scores.
      frames: the map of embeddings, if there is one.
      pictures: by file name.
      data: fingerprint of the data.
      test_frames: rows of `test_frames.csv`, if there is one.
    """

    name: str
    config: Mapping[str, Any]
    datasets: Sequence[About]
    results: Mapping[str, Any]
    series: Mapping[str, Float[np.ndarray, "points 2"]]
    scores: Mapping[str, Scores]
    frames: FrameMap | None
    pictures: Mapping[str, Picture]
    data: str = ""
    test_frames: Sequence[Mapping[str, str]] = ()

    @property
    def finished(self) -> bool:
        """Whether there are results."""
        return bool(self.results)

    @property
    def task(self) -> str | None:
        """The task of a downstream run; None for pretraining."""
        return self.config.get("task.kind")

    @property
    def steps(self) -> int:
        """The last step in the metrics."""
        return int(max((points[-1, 0] for points in self.series.values()), default=0))


def read_run(folder: Path) -> Run:
    """Read all that the page of a run shows.

    Raises:
      InputError: the folder does not exist or is not a run, or a file in it is damaged or a link.
      OSError: a file cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Use a run folder.")
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder} is not a run folder: {CONFIG_FILE} not found. Use the folder of --workdir.")
    # The page holds what its files hold, and is passed on: a link could add any file of this machine.
    require_plain_tree(folder, links=False)
    stored = read_run_config(folder)
    config = dict(flattened(stored["config"]))
    results = read_results(folder)
    metrics, frames = folder / METRICS_FILE, folder / MAP_FILE
    # The file is empty until its first line.
    begun = metrics.is_file() and metrics.stat().st_size > 0
    return Run(
        folder.resolve().name,
        about.recorded_fields(config, config),
        about.of_run(config, stored.get("datasets"), results.get("datasets")),
        results,
        curves.read_series(metrics) if begun else {},
        {column: value for column, value in results.items() if are_scores(value)},
        FrameMap.load(frames) if frames.is_file() else None,
        {file: _picture(folder / file) for file in _PICTURES if (folder / file).is_file()},
        stored["data"],
        _test_frames(folder / FRAMES_FILE),
    )


def _test_frames(path: Path) -> list[dict[str, str]]:
    """Return the rows of a run's `test_frames.csv`, none if there is no such file.

    Raises:
      InputError: the file is not as a run writes it.
    """
    if not path.is_file():
        return []
    rows = read_frames(path)
    columns = set(rows[0])
    try:
        if not columns >= {"frame", "patient"} or len({"label", "prediction"} & columns) == 1:
            raise ValueError("its columns are not frame, patient, label and prediction")
        for row in rows:
            for name in columns:
                if name.startswith("dice/") and row[name] and not 0 <= float(row[name]) <= 1:
                    raise ValueError(f"a Dice of {row[name]}")
    except ValueError as error:
        raise InputError(f"{path} is not as a run writes it ({first_line(error)}). Restore or delete it.") from None
    return rows


def _picture(path: Path) -> Picture:
    title, alt = _PICTURES[path.name]
    return Picture(path.name, title, alt, base64.b64encode(path.read_bytes()).decode())


def as_text(value: Any) -> str:
    """Return a value of the configuration as a short text."""
    return value if isinstance(value, str) and value else json.dumps(value)
