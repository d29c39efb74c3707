"""The data of the page's scripts as plain values: curves, and the map of frames."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from awcl_jax.report import curves, tables
from awcl_jax.report.contents import Run
from awcl_jax.report.embedding_map import LABELS, PER_ROW, FrameMap

MOST_POINTS = 2_000
_SIDE = 10_000  # of the square that places are rounded in


def panels(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return panels of curves: `key`, `title`, and `series`, each with `run`, `label`, `steps` and `values`."""
    names = dict.fromkeys(name for run in runs for name in run.series)
    found = []
    for panel, members in curves.panels([name for name in names if name != "collapsed_loss"]).items():
        if panel == "loss" and "collapsed_loss" in names:
            members = [*members, "collapsed_loss"]
        series = [
            {"run": i, "label": _label(name, panel, members), **_values(run.series[name])}
            for name in members
            for i, run in enumerate(runs)
            if name in run.series
        ]
        found.append({"key": panel, "title": curves.title_of(panel), "series": series})
    return found


def _label(name: str, panel: str, members: Sequence[str]) -> str:
    if name == "collapsed_loss":
        return "collapsed encoder"
    return curves.label_of(name) if name != panel or len(members) > 1 else curves.label_of(panel)


def _values(points: Float[np.ndarray, "points 2"]) -> dict[str, list[Any]]:
    """Return steps and values, null where a value is not finite."""
    kept = points[thinned(points[:, 1], MOST_POINTS)]
    values = [float(f"{value:.6g}") if np.isfinite(value) else None for value in kept[:, 1]]
    return {"steps": kept[:, 0].astype(int).tolist(), "values": values}


def thinned(values: Float[np.ndarray, " n"], most: int) -> np.ndarray:
    """Return which values to draw, at most `most`: the lowest and highest of each stretch, so that spikes stay.

    A stretch with a non-finite value shows the first of these instead of its lowest.
    """
    if len(values) <= most:
        return np.arange(len(values))
    kept = []
    for stretch in np.array_split(np.arange(len(values)), most // 2):
        part = values[stretch]
        broken = np.flatnonzero(~np.isfinite(part))
        low = broken[0] if broken.size else part.argmin()
        kept += [stretch[low], stretch[np.where(np.isfinite(part), part, -np.inf).argmax()]]
    return np.unique(kept)


def cells(run: Run) -> dict[str, Any] | None:
    """Return the test frames behind the cells of a run's confusion matrix; None if the run has not stored them.

    Returns:
      `names` of the anatomies as in `tables.confusion`; for each frame its `ids`, its `true` and `predicted` anatomy as
      a position in `names`, and its `places` on the map, -1 if it is not there.
    """
    matrix = tables.confusion(run)
    if matrix is None or not run.test_frames or "prediction" not in run.test_frames[0]:
        return None
    numbers = {name: number for number, name in enumerate(matrix.names)}
    counted = [row for row in run.test_frames if row["label"] in numbers and row["prediction"] in numbers]
    if len(counted) != matrix.frames:
        return None  # of other results
    places = {} if run.frames is None else {str(frame): i for i, frame in enumerate(run.frames.frame_ids)}
    return {
        "names": matrix.names,
        "ids": [row["frame"] for row in counted],
        "true": [numbers[row["label"]] for row in counted],
        "predicted": [numbers[row["prediction"]] for row in counted],
        "places": [places.get(row["frame"], -1) for row in counted],
    }


def frame_map(frames: FrameMap) -> dict[str, Any]:
    """Return the frames of a map as lists of plain values.

    Returns:
      `ids`; `labels`: for each of LABELS `codes` and `names`; `x` and `y` from 0 to 10,000; `k`; of the `same` scan and
      of `others`, `frames` and `cosines` in thousandths, k after k; `thumbnails`: `edge`, `count`, `row`, and `sheets`
      as data URLs.
    """
    low = frames.places.min(axis=0)
    places = (frames.places - low) / max(float(np.ptp(frames.places, axis=0).max()), 1e-9) * _SIDE
    return {
        "ids": frames.frame_ids.tolist(),
        "labels": {
            name: {"codes": frames.labels[name].codes.tolist(), "names": frames.labels[name].names} for name in LABELS
        },
        "x": places[:, 0].round().astype(int).tolist(),
        "y": places[:, 1].round().astype(int).tolist(),
        "k": frames.same_scan.frames.shape[1],
        **{
            name: {
                "frames": found.frames.reshape(-1).tolist(),
                "cosines": (1000 * found.cosines).round().astype(int).reshape(-1).tolist(),
            }
            for name, found in (("same", frames.same_scan), ("others", frames.other_scans))
        },
        "thumbnails": {
            "edge": frames.thumbnails.edge,
            "count": frames.thumbnails.count,
            "row": PER_ROW,
            "sheets": [f"data:image/webp;base64,{base64.b64encode(s).decode()}" for s in frames.thumbnails.sheets],
        },
    }
