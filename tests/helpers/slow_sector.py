"""The sector of a frame as `awcl_jax.data.sector` describes it, one step after the other without a shortcut."""

import math

import cv2
import numpy as np
from PIL import Image

_SLOPES = np.linspace(-1.6, 0.3, 77)


def sector_slowly(frame: np.ndarray) -> np.ndarray:
    """What `find_sector` returns."""
    small = shrink_slowly(frame)
    level = min(8.0, np.percentile(cv2.blur(small, (9, 9)), 0.5))
    sector = _above(small, np.float32(level) + np.float32(0.5))
    if sector.mean() >= 0.97:
        sector = _above(small, np.float32(level) + np.float32(2.0))
    if sector.mean() < 0.1:
        return np.ones(frame.shape, bool)
    return np.asarray(Image.fromarray(sector.astype(np.uint8)).resize(frame.shape[::-1], Image.Resampling.NEAREST)) != 0


def shrink_slowly(frame: np.ndarray) -> np.ndarray:
    """At most 256 pixels along an edge, each the mean of what it covers, which is a sum of whole numbers.

    Halfway between two greys OpenCV's single precision decides, so the frame's edges must not lead there.
    """
    height, width = frame.shape
    if max(height, width) <= 256:
        return frame
    size = [max(1, round(edge * (256 / max(height, width)))) for edge in (height, width)]
    shares = []
    for edge, new in zip(frame.shape, size, strict=True):
        share = np.zeros((new, edge), np.int64)
        for to in range(new):
            for at in range(edge):  # in units in which an old pixel has `new`, and a new one `edge`
                share[to, at] = max(0, min((to + 1) * edge, (at + 1) * new) - max(to * edge, at * new))
        shares.append(share)
    sums = shares[0] @ frame.astype(np.int64) @ shares[1].T
    assert not (2 * (sums % (height * width)) == height * width).any(), "a mean is halfway"
    return ((2 * sums + height * width) // (2 * height * width)).astype(np.uint8)


def _above(small: np.ndarray, level: np.float32) -> np.ndarray:
    broad = cv2.blur(small.astype(np.float32), (3, 3)) > level
    parts = np.where(small > level, _parts(broad), 0)
    if not parts.any():
        return parts != 0
    parts, left = _without_left(parts)
    mirrored, right = _without_left(parts[:, ::-1])
    pixels = np.argwhere(mirrored[:, ::-1] > 0)[:, ::-1]
    filled = np.zeros(small.shape, np.uint8)
    cv2.fillConvexPoly(filled, cv2.convexHull(pixels.astype(np.int32)), 1)
    sector = filled != 0
    return sector if left is None or right is None else _with_dark_part(sector, pixels, left, right)


def _parts(broad: np.ndarray) -> np.ndarray:
    """2 in the largest part that is no writing, 1 in others that are not small."""
    edge = max(5, 2 * round(7 / 256 * max(broad.shape) / 2) + 1)
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (edge, edge)) != 0
    half, (height, width) = edge // 2, broad.shape
    padded = np.pad(broad, half)
    within = [np.s_[y : y + height, x : x + width] for y, x in np.argwhere(brush)]
    eroded = np.pad(np.logical_and.reduce([padded[place] for place in within]), half)
    opened = np.logical_or.reduce([eroded[place] for place in within])
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened.astype(np.uint8), connectivity=8)
    areas = [int(stats[part, cv2.CC_STAT_AREA]) for part in range(1, count)]
    parts = np.zeros(broad.shape, int)
    for part, area in enumerate(areas, start=1):
        if area >= 0.02 * max(areas):
            parts[labels == part] = 1
    if areas:
        parts[labels == 1 + areas.index(max(areas))] = 2
    return parts


def _without_left(parts: np.ndarray) -> tuple[np.ndarray, tuple[float, float] | None]:
    """The parts without what is outside the largest one's left side, and the slope and start of that."""
    begins = [(int(np.flatnonzero(row == 2)[0]), y) for y, row in enumerate(parts) if (row == 2).any()]
    away = [(x, y) for x, y in begins if x > 1]
    side = _side(away, max(8.0, 0.15 * len(begins)))
    if side is None:
        return parts, None
    slope, start, share = side
    outside = np.zeros(parts.shape, bool)
    for y in range(len(parts)):
        outside[y, : max(0, math.ceil(slope * y + start - 0.5))] = True
    of_largest, of_all = ((outside & seen).sum() / seen.sum() for seen in (parts == 2, parts > 0))
    if of_largest > 0.02 or of_all > (0.15 if share > 0.75 else 0.05):
        return parts, None
    return np.where(outside, 0, parts), (slope, start)


def _side(begins: list[tuple[int, int]], least: float) -> tuple[float, float, float] | None:
    found = None
    columns, rows = np.array(begins, int).reshape(-1, 2).T
    for slope in _SLOPES:
        starts = np.sort(columns - slope * rows)
        counts = [int(((starts >= start) & (starts <= start + 2.0)).sum()) for start in starts]
        if counts and max(counts) >= least and (found is None or max(counts) > found[2]):
            found = (float(slope), float(starts[counts.index(max(counts))]), max(counts))
    return found and (*found[:2], found[2] / len(begins))


def _with_dark_part(
    sector: np.ndarray, pixels: np.ndarray, left: tuple[float, float], right: tuple[float, float]
) -> np.ndarray:
    height, width = sector.shape
    if left[0] + right[0] >= 0 or abs(left[0] - right[0]) > 0.1:
        return sector
    apex_y = (width - 1 - right[1] - left[1]) / (left[0] + right[0])
    apex_x = left[0] * apex_y + left[1]
    farthest = max(math.hypot(x - apex_x, y - apex_y) for x, y in pixels.tolist())
    on_axis = np.flatnonzero(sector[:, min(max(round(apex_x), 0), width - 1)])
    if not on_axis.size or on_axis[-1] - apex_y > 0.95 * min(farthest, height - 1 - apex_y):
        return sector
    fan = np.zeros_like(sector)
    for y in range(int(pixels[:, 1].min()), height):
        half = math.sqrt(max(farthest**2 - (y - apex_y) ** 2, 0.0))
        for x in range(width):
            within = left[0] * y + left[1] <= x <= width - 1 - right[0] * y - right[1]
            fan[y, x] = within and apex_x - half <= x <= apex_x + half
    return sector | fan if fan.sum() >= 1.15 * sector.sum() else sector
