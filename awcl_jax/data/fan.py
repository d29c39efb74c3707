"""The shape of a convex or phased array's sector: apex, sides and arcs, as stored with a dataset's scans."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from awcl_jax.data.sector import left_side
from awcl_jax.data.stored import open_dataset

FANS = "fans"
"""Key of the dataset's metadata."""

_WIDENS = 0.15  # columns per row, at least; less is a linear array
_ROWS = 0.2  # of the sector's rows, which begin on the line of its side
_OFF = 1.5  # pixels that a row's end may be off its side
_WITHIN = 0.9  # of the angle between the axis and a side, where the arc is searched
_ROUND = 0.03  # of the radius: the arc's pixels are no farther from their median


class Fan(NamedTuple):
    """A fan in pixels of the frame, as stored.

    Attributes:
      apex_x, apex_y: where its sides meet, most often above the frame.
      left, right: angles of its sides from straight down, in degrees; to the left they are below 0.
      inner: radius at which its sides begin; None if the frame's border cuts them off.
      outer: radius of its arc; None if the frame's border cuts it off, or if it is not circular.
    """

    apex_x: float
    apex_y: float
    left: float
    right: float
    inner: float | None
    outer: float | None


def fit_fan(sector: Bool[np.ndarray, "h w"]) -> Fan | None:
    """Return the fan of a sector; None for a linear array, or if a side is not visible.

    Args:
      sector: from `find_sector`: straight over the array's face.
    """
    width = sector.shape[1]
    rows = np.flatnonzero(sector.any(axis=1))
    if not rows.size:
        return None
    first = sector[rows].argmax(axis=1)
    last_mirrored = sector[rows, ::-1].argmax(axis=1)
    left, right = _line(first, rows), _line(last_mirrored, rows)
    if left is None or right is None or left[0] + right[0] > -_WIDENS:
        return None
    apex_y = (width - 1 - left[1] - right[1]) / (left[0] + right[0])
    apex_x = left[0] * apex_y + left[1]
    angles = math.atan(left[0]), -math.atan(right[0])
    tops = min(left[2], right[2]), max(left[2], right[2])
    inner = None
    if tops[0] > 1:
        inner = float(np.mean([(left[2] - apex_y) / math.cos(angles[0]), (right[2] - apex_y) / math.cos(angles[1])]))
    outer = _outer(sector, apex_x, apex_y, angles)
    degrees = [round(math.degrees(angle), 2) for angle in angles]
    return Fan(round(apex_x, 1), round(apex_y, 1), *degrees, *(r if r is None else round(r, 1) for r in (inner, outer)))


def read_fans(path: Path) -> dict[str, list[Fan | None]]:
    """Read the fans of a prepared dataset.

    Args:
      path: folder of the dataset (TFDS's version folder, `ScanIndex.path`).

    Returns:
      For each scan whose clips' sectors were searched (`ingest --region=sector`), the fan of each clip, None if it is
      not a fan. Other scans are left out, and a dataset from before fans were stored has none.

    Raises:
      InputError: the dataset does not exist, or cannot be opened.
    """
    metadata = open_dataset(path).info.metadata or {}
    return {scan: [None if fan is None else Fan(*fan) for fan in fans] for scan, fans in metadata.get(FANS, {}).items()}


def _line(first: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]) -> tuple[float, float, int] | None:
    """Return slope, start and topmost row of the line column = slope row + start on which rows begin."""
    away = first > 1  # rows that begin at the border show no side
    columns, rows = first[away], rows[away]
    side = left_side(columns, rows, least=max(8.0, _ROWS * first.size))
    if side is None:
        return None
    slope, start = side.slope, side.start + 1.0
    for _ in range(3):
        near = np.abs(columns - slope * rows - start) <= _OFF
        if near.sum() < 2:
            return None
        slope, start = np.polyfit(rows[near], columns[near], 1).tolist()
    return slope, start, int(rows[near][0])


def _outer(sector: Bool[np.ndarray, "h w"], apex_x: float, apex_y: float, angles: tuple[float, float]) -> float | None:
    columns = np.flatnonzero(sector.any(axis=0))
    last = sector.shape[0] - 1 - sector[::-1, columns].argmax(axis=0)
    to_side = np.arctan2(columns - apex_x, last - apex_y)
    arc = (last < sector.shape[0] - 2) & (to_side > _WITHIN * angles[0]) & (to_side < _WITHIN * angles[1])
    if arc.sum() < 8:
        return None
    radii = np.hypot(columns[arc] - apex_x, last[arc] - apex_y)
    middle = float(np.median(radii))
    return middle if np.quantile(np.abs(radii - middle), 0.9) <= _ROUND * middle else None
