"""The sector of a frame: where the machine shows echoes, without the text around them.

Machines burn text, scales and grey bars into their pictures. A model can read the preset there ("Cardiac") instead of
the anatomy.
"""

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped, UInt8

from awcl_jax.data.nearest import resize_nearest

_EDGE = 256  # pixels of the longer edge for the search; larger frames are shrunk
_EXACT = 1000  # pixels, of which the mean is nearer to a grey than to halfway by more than single precision errs
_FULL = 0.97  # a sector of at least this share of the picture is searched again, above the noise
_ABOVE = (0.5, 2.0)  # grey levels of echoes above their surroundings: at first, and above the noise of a picture
_BLACK = 8.0  # the brightest grey around a sector
_WRITING = 7 / 256  # width of what is too thin to be a sector, as a share of the longer edge
_PART = 0.02  # of the largest part: smaller ones are writing
_LEAST = 0.1  # of the picture: what is smaller is not a sector
_SLOPES = np.linspace(-1.6, 0.3, 77)  # columns per row of the left side, from a wide sector to a narrowing one
_STRAIGHT = 0.15  # of the rows, which must begin on one line for it to be a side
_OUTSIDE = (0.02, 0.05)  # of the largest part, and of all parts, that may be outside a side
_CLEAR = 0.75  # of the rows: a side on which more begin is clear
_OUTSIDE_CLEAR = 0.15  # of all parts, that may be outside a clear side
_EVEN = 0.1  # columns per row by which the slopes of a fan's sides may differ
_DARK = (0.95, 1.15)  # of a fan with a dark part: depth on its axis, at most; area with the part, at least, to without


class Side(NamedTuple):
    """The line column = slope row + start on which most rows of a sector begin, and the share of rows that do."""

    slope: float
    start: float
    share: float


def find_sector(frame: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the convex part of a frame with its echoes: a fan, a rectangle, or the visible part of one.

    Echoes are brighter than the darkest part of the frame; what is as thin as writing, or small, is left out. Writing
    that touches the fan is cut off along the fan's side, where most rows of it begin. The convex hull of the rest fills
    in shadows and fluid; where much of a fan is dark, the circular sector between its sides does. What is above the
    face of a curved array, within its hull, counts as sector.

    Returns:
      True in the sector; everywhere, where none is found.
    """
    sector = search_sector(frame)
    return np.ones(frame.shape, bool) if sector is None else sector


def search_sector(frame: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"] | None:
    """Return the sector of `find_sector`; None where none is found, as in a frame of a lifted probe."""
    small = shrink(frame)
    sector = _above(small, _ABOVE[0])
    if np.count_nonzero(sector) >= _FULL * sector.size:
        sector = _above(small, _ABOVE[1])
    if np.count_nonzero(sector) < _LEAST * sector.size:
        return None
    return enlarge(sector, frame.shape)


def mask_overlays(frame: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Return the frame with 0 outside its sector."""
    return frame * find_sector(frame)


def shrink(frame: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "_ _"]:
    """Return the frame at the size at which sectors are looked for: no edge is longer than 256 pixels."""
    h, w = frame.shape
    scale = _EDGE / max(h, w)
    if scale >= 1:
        return frame
    return _mean_of_areas(frame, (max(1, round(h * scale)), max(1, round(w * scale))))


def _mean_of_areas(frame: Shaped[np.ndarray, "h w"], size: tuple[int, int]) -> Shaped[np.ndarray, "h2 w2"]:
    """Return a frame that is shrunk as `cv2.INTER_AREA` does: each pixel is the mean of the area that it covers.

    Along an edge that shrinks to q / p of its length, q pixels come from p, with integers as weights. Sums of weighted
    8-bit greys are exact in single precision, which takes a third of OpenCV's time. If p is odd, no mean is halfway
    between two greys, so both round alike.
    """
    (down, tall), (across, wide) = (_reduced(edge, new) for edge, new in zip(frame.shape, size, strict=True))
    if frame.dtype != np.uint8 or down * across > _EXACT or down * across % 2 == 0:
        return cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    rows = _shares(down, tall) @ frame.astype(np.float32).reshape(-1, down, frame.shape[1])
    sums = rows.reshape(size[0], -1, across) @ _shares(across, wide).T
    return cv2.convertScaleAbs(sums.reshape(size), alpha=1 / (down * across))


def _reduced(edge: int, new: int) -> tuple[int, int]:
    """Return p and q, without a common divisor, of an edge that shrinks to q / p of its length."""
    common = math.gcd(edge, new)
    return edge // common, new // common


@functools.lru_cache(maxsize=64)
def _shares(old: int, new: int) -> Float32[np.ndarray, "new old"]:
    """Return how many `new`-ths of each of `old` pixels each of `new` pixels covers."""
    starts, covered = np.arange(0, old * new, old)[:, None], np.arange(0, old * new, new)
    return np.maximum(np.minimum(starts + old, covered + new) - np.maximum(starts, covered), 0).astype(np.float32)


def enlarge(sector: Bool[np.ndarray, "_ _"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Return a sector of a shrunk frame at the frame's size."""
    return resize_nearest(sector, size)


def _above(frame: UInt8[np.ndarray, "h w"], above: float) -> Bool[np.ndarray, "h w"]:
    """Return the sector of what is a few grey levels brighter than the darkest part; empty if nothing is."""
    level = background(frame) + np.float32(above)
    return sector_of(cv2.blur(frame.astype(np.float32), (3, 3)) > level, frame > level)


def background(frame: Shaped[np.ndarray, "h w"]) -> np.float32:
    """Return the grey value around the echoes, estimated from the darkest part of a frame."""
    return np.float32(min(_BLACK, _percentile(cv2.blur(frame, (9, 9)))))


def _percentile(values: Shaped[np.ndarray, "h w"]) -> float:
    """Return the 0.5th percentile as NumPy does; of 8-bit greys from the two that it is between, six times as fast."""
    if values.dtype != np.uint8:
        return float(np.percentile(values, 0.5))
    below, share = divmod(0.005 * (values.size - 1), 1)
    places = int(below), min(int(below) + 1, values.size - 1)
    least, most = np.partition(values.ravel(), places)[list(places)].tolist()
    return least + (most - least) * share if share < 0.5 else most - (most - least) * (1 - share)


def sector_of(broad: Bool[np.ndarray, "h w"], echoes: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the sector that contains the echoes.

    Args:
      broad: where echoes are in the mean of the pixels about: what is as thin as writing here is left out.
      echoes: the pixels that may be of the sector.

    Returns:
      True in the sector; nowhere, where nothing is broad.
    """
    sector = np.zeros(echoes.shape, np.uint8)
    parts = _without_writing(broad.astype(np.uint8)) * echoes
    if not np.count_nonzero(parts):
        return sector != 0
    parts, left = _trim_left(parts)
    mirrored, right = _trim_left(cv2.flip(parts, 1))  # a copy: NumPy is slow on a view that runs backwards
    ends = _ends_of_rows(cv2.flip(mirrored, 1) > 0)
    cv2.fillConvexPoly(sector, cv2.convexHull(ends), color=1)
    if left is not None and right is not None:
        _add_dark_part(sector, ends, left, right)
    return sector != 0


def _add_dark_part(sector: UInt8[np.ndarray, "h w"], ends: Int[np.ndarray, "n 2"], left: Side, right: Side) -> None:
    """Add to a sector what is between the sides of a fan and no farther from its apex than its farthest echo.

    A fan is as wide to the left as to the right. One that reaches this depth on its axis is left as it is: in a frame
    that was made square its arc is none of a circle.

    Args:
      sector: changed in place.
      ends: (x, y) of its outermost pixels.
      left: its left side.
      right: its right side, of the mirrored sector.
    """
    height, width = sector.shape
    if left.slope + right.slope >= 0 or abs(left.slope - right.slope) > _EVEN:
        return
    apex_y = (width - 1 - right.start - left.start) / (left.slope + right.slope)
    apex_x = left.slope * apex_y + left.start
    farthest = np.hypot(ends[:, 0] - apex_x, ends[:, 1] - apex_y).max()
    on_axis = np.flatnonzero(sector[:, min(max(round(apex_x), 0), width - 1)])
    if not on_axis.size or on_axis[-1] - apex_y > _DARK[0] * min(farthest, height - 1 - apex_y):
        return
    rows = np.arange(ends[:, 1].min(), height)
    half = np.sqrt(np.maximum(farthest**2 - (rows - apex_y) ** 2, 0.0))
    first = np.ceil(np.maximum(np.maximum(left.slope * rows + left.start, apex_x - half), 0)).astype(int)
    last = np.floor(np.minimum(np.minimum(width - 1 - right.slope * rows - right.start, apex_x + half), width - 1))
    if np.maximum(last - first + 1, 0).sum() >= _DARK[1] * sector.sum():
        columns = np.arange(width)
        sector[rows] |= (columns >= first[:, None]) & (columns <= last[:, None])


def _ends_of_rows(region: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "n 2"]:
    """Return (x, y) of the first and last pixel of each row: 1% of all pixels, with the same convex hull."""
    mirrored = cv2.flip(region.view(np.uint8), 1).view(bool)
    first, last = region.argmax(axis=1), region.shape[1] - 1 - mirrored.argmax(axis=1)
    rows = np.flatnonzero(region[np.arange(len(first)), first])
    first, last = first[rows], last[rows]
    ends = np.stack([np.concatenate([first, last]), np.concatenate([rows, rows])], axis=1)
    return ends.astype(np.int32)


def _without_writing(bright: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Return what is left without thin parts: 2 in the largest part, 1 in others that are not small.

    Fluid or a shadow may cut a sector into several parts.
    """
    edge = max(5, 2 * round(_WRITING * max(bright.shape) / 2) + 1)
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (edge, edge))
    # An empty border: by default OpenCV treats pixels beyond it as bright, and so keeps a bar along it.
    opened = cv2.morphologyEx(bright, cv2.MORPH_OPEN, brush, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    # Without OpenCV's statistics, which take six times as long.
    count, parts = cv2.connectedComponents(opened, connectivity=8, ltype=cv2.CV_32S)
    if count <= 2:  # nothing, or a single part
        return cv2.add(opened, opened)
    areas = np.bincount(parts.ravel(), minlength=count)
    rank = (areas >= _PART * areas[1:].max()).astype(np.uint8)
    rank[1 + areas[1:].argmax()] = 2
    rank[0] = 0
    return rank.take(parts)


def _trim_left(parts: UInt8[np.ndarray, "h w"]) -> tuple[UInt8[np.ndarray, "h w"], Side | None]:
    """Return the parts without what is outside the largest one's straight left side, and that side, if any."""
    echoes = parts == 2
    first = echoes.argmax(axis=1)
    rows = np.flatnonzero(echoes[np.arange(len(first)), first])
    first = first[rows]
    away = first > 1  # rows that begin at the border tell of no side
    side = left_side(first[away], rows[away], least=max(8.0, _STRAIGHT * rows.size))
    if side is None:
        return parts, None
    height, width = echoes.shape
    inside_from = np.ceil(side.slope * np.arange(height) + side.start - 0.5).astype(np.int32)
    outside = np.arange(width, dtype=np.int32) < inside_from[:, None]
    lost = tuple(np.count_nonzero(outside & seen) / np.count_nonzero(seen) for seen in (echoes, parts > 0))
    if lost[0] > _OUTSIDE[0] or lost[1] > (_OUTSIDE_CLEAR if side.share > _CLEAR else _OUTSIDE[1]):
        return parts, None
    return parts * ~outside, side


def left_side(columns: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"], *, least: float) -> Side | None:
    """Return the left side of a sector, to two pixels.

    Args:
      columns: at which its rows begin.
      rows: these rows, ascending.
      least: number of rows; None is returned where fewer begin on one line.
    """
    if columns.size < least or not columns.size:
        return None
    slopes = _slopes_to_try(columns, rows)
    most = _most_on_a_line(columns, rows, _SLOPES[slopes])
    best, count = None, max(0, math.ceil(least) - 1)
    for place in np.argsort(-most, kind="stable").tolist():
        if most[place] < count:
            break
        slope = slopes.start + place
        start, on_line = _line_of(columns, rows, slope)
        # Of equal counts that of the first slope, so that the order in which slopes are looked at does not matter.
        if on_line > count or (on_line == count and best is not None and slope < best[0]):
            best, count = (slope, start), on_line
    return None if best is None else Side(float(_SLOPES[best[0]]), best[1], count / columns.size)


def _line_of(columns: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"], slope: int) -> tuple[float, int]:
    """Return the start of the first of the lines of a slope on which most rows begin, and how many these are."""
    starts = np.sort(columns - _SLOPES[slope] * rows)
    counts = starts.searchsorted(starts + 2.0, side="right") - np.arange(columns.size)
    at = int(counts.argmax())
    return float(starts[at]), int(counts[at])


def _slopes_to_try(columns: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]) -> slice:
    """Return the slopes among which is every one on which most rows can begin: a few where a line is clear.

    Of two lines whose slopes differ by d, at most 4 / d + 1 rows begin on both. So if c of n rows begin on a line, at
    most n - c + 4 / d + 1 do on one whose slope is d from its: fewer than c if d > 4 / (2 c - n - 1). The line that is
    looked at has the middle one of the slopes from each row to the row that half of them are in between.
    """
    half = columns.size // 2
    rises = (columns[half:] - columns[: columns.size - half]) / np.maximum(rows[half:] - rows[: columns.size - half], 1)
    middle = float(np.partition(rises, rises.size // 2)[rises.size // 2])
    step = _SLOPES[1] - _SLOPES[0]
    guess = min(max(round((middle - _SLOPES[0]) / step), 0), len(_SLOPES) - 1)
    clear = 2 * _line_of(columns, rows, guess)[1] - columns.size - 2  # a row less than above, which rounding may move
    reach = int(4 / (step * clear)) if clear > 0 else len(_SLOPES)
    return slice(max(guess - reach, 0), min(guess + reach + 1, len(_SLOPES)))


def _most_on_a_line(
    columns: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"], slopes: Float[np.ndarray, " s"]
) -> Int[np.ndarray, " s"]:
    """Return, for each slope, a number of rows that at most begin within two pixels: those in three bins of one."""
    starts = columns.astype(np.float32) - slopes.astype(np.float32)[:, None] * rows.astype(np.float32)
    # Wider than a pixel by more than single precision can err, which is a few millionths of the largest number.
    edge = 1.01 + 2.0**-20 * float(columns.max() + 2 * rows.max())
    bins = ((starts - starts.min(axis=1, keepdims=True)) * np.float32(1 / edge)).astype(np.int32)
    width = int(bins.max()) + 3  # two are empty, so that sums of three stay within a slope
    bins += np.arange(0, width * len(starts), width, dtype=np.int32)[:, None]
    counted = np.bincount(bins.ravel(), minlength=width * len(starts) + 2).astype(np.int32)
    return (counted[:-2] + counted[1:-1] + counted[2:]).reshape(len(starts), width).max(axis=1)
