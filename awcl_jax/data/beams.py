"""Which fan each frame has, and where it lies in the square that an encoder gets.

`ingest` finds a fan for a whole clip. The dataset's metadata list, by scan, how many of its frames in a row are of one
clip, with the clip's fan; frames of a scan are in the order of the records.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int32

from awcl_jax.data.about import read_metadata
from awcl_jax.data.fan import Fan
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.square import fitted
from awcl_jax.runtime.errors import InputError

FANS_OF_FRAMES = "fans_of_frames"
"""Key of the dataset's metadata: scan -> [number of frames in a row, their fan as numbers or None], in order."""

UNKNOWN = np.zeros(6, np.float32)
"""A fan in a square, where there is none."""


def fans_of(index: ScanIndex) -> tuple[tuple[Fan, ...], Int32[np.ndarray, " n"]]:
    """Return the fans of clips, and which of them each frame of an index has; -1 if it has none.

    Two clips have two fans, even if they are equal, because their frames may differ in size. If the index lacks frames
    of a scan, such as unreadable ones, the others keep their fan only where the scan has one clip.

    Raises:
      InputError: the dataset's metadata cannot be read.
    """
    stored = read_metadata(index.path).get(FANS_OF_FRAMES, {})
    fans: list[Fan] = []
    which = np.full(len(index), -1, np.int32)
    try:
        by_scan = {scan: [(int(count), _fan(fan)) for count, fan in runs] for scan, runs in stored.items()}
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            f"The {FANS_OF_FRAMES} in {index.path / 'metadata.json'} are damaged. Prepare the dataset again."
        ) from None
    for scan, frames in _frames_by_scan(index) if by_scan else ():
        runs = by_scan.get(index.scan_names[scan], [])
        if len(runs) == 1:
            runs = [(frames.size, runs[0][1])]
        if sum(count for count, _ in runs) != frames.size:
            continue
        start = 0
        for count, fan in runs:
            if fan is not None:
                which[frames[start : start + count]] = len(fans)
                fans.append(fan)
            start += count
    return tuple(fans), which


def in_square(fan: Fan, shape: tuple[int, int], size: int, aspect: str) -> Float32[np.ndarray, "6"]:
    """Return a fan as six numbers for the frame made square, see `awcl_jax.augment.beams`.

    Args:
      fan: in pixels of the frame.
      shape: of the frame, height and width.
      size: edge of the square.
      aspect: how the frame is made square, see `awcl_jax.data.square`.
    """
    fit = fitted(shape, size, aspect)
    per_y, per_x = shape[0] / fit[0], shape[1] / fit[1]
    top, left = ((size - edge) // 2 for edge in fit)
    # The centre of the first pixel is 0 for a fan, and half a pixel from the corner.
    apex_y, apex_x = top + (fan.apex_y + 0.5) / per_y, left + (fan.apex_x + 0.5) / per_x
    sides = math.radians(fan.left), math.radians(fan.right)
    return np.array([apex_y, apex_x, per_y, per_x, *sides], np.float32)


def _fan(numbers: Any) -> Fan | None:
    if numbers is None:
        return None
    fan = Fan(*numbers)
    if not all(math.isfinite(number) for number in fan[:4]) or not fan.left < fan.right:
        raise ValueError(numbers)
    return fan


def _frames_by_scan(index: ScanIndex) -> Iterator[tuple[int, Int[np.ndarray, " m"]]]:
    """Yield each scan with the positions of its frames, in the order of their records."""
    order = np.lexsort((index.records, index.scans))
    for frames in np.split(order, np.flatnonzero(np.diff(index.scans[order])) + 1):
        if frames.size:
            yield int(index.scans[frames[0]]), frames
