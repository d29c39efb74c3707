"""The sector of a frame: where the machine shows echoes, and not what it writes about them.

Machines burn text, scales and grey bars into their pictures. A model can read the preset there ("Cardiac") in place of
the anatomy.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

_EDGE = 256  # pixels of the longer edge at which the sector is looked for; larger frames are shrunk
_FULL = 0.97  # a sector of this share of the picture or more is looked for again, above the noise
_ABOVE = (0.5, 2.0)  # grey levels that echoes lie above what is about them: at first, and above the noise of a picture
_BLACK = 8.0  # the brightest grey that may lie about a sector
_WRITING = 7 / 256  # width of what is too thin to be a sector, as a share of the longer edge
_PART = 0.02  # of the largest part: smaller ones are writing
_LEAST = 0.1  # of the picture: what is smaller is no sector
_SLOPES = np.linspace(-1.6, 0.3, 77)  # columns a row that the left side runs, from a wide sector to a narrowing one
_STRAIGHT = 0.15  # of the rows, which must begin on one line for it to be a side
_OUTSIDE = (0.02, 0.05)  # of the largest part, and of all parts, which may lie outside of a side


def find_sector(frame: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The convex part of a frame that holds its echoes: a fan, a rectangle, or what a screen leaves of one.

    Echoes are brighter than the darkest part of the frame; what is as thin as writing, or small, is left out. Writing
    that touches the fan is cut off along the fan's side, where most rows of it begin. The convex hull of the rest fills
    in shadows and fluid. What lies above the face of a curved array, within its hull, counts as sector.

    Returns:
      True in the sector; everywhere, where none is found.
    """
    h, w = frame.shape
    scale = min(1.0, _EDGE / max(h, w))
    small = frame
    if scale < 1:
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    sector = _hull(small, above=_ABOVE[0])
    if sector.mean() >= _FULL:
        sector = _hull(small, above=_ABOVE[1])
    if sector.mean() < _LEAST:
        return np.ones((h, w), bool)
    return cv2.resize(sector.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST_EXACT) != 0


def mask_overlays(frame: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """The frame with 0 outside of its sector."""
    return np.where(find_sector(frame), frame, 0).astype(np.uint8)


def _hull(frame: UInt8[np.ndarray, "h w"], *, above: float) -> Bool[np.ndarray, "h w"]:
    """The convex hull of what is a few grey levels brighter than the darkest part; nothing, where nothing is."""
    level = np.float32(above + min(_BLACK, np.percentile(cv2.blur(frame, (9, 9)), 0.5)))
    bright = (cv2.blur(frame.astype(np.float32), (3, 3)) > level).astype(np.uint8)
    parts = _without_writing(bright) * (frame > level)
    if not parts.any():
        return np.zeros(frame.shape, bool)
    parts = _trim_left(parts)
    echoes = _trim_left(parts[:, ::-1])[:, ::-1] > 0
    hull = np.zeros(frame.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(_ends_of_rows(echoes)), color=1)
    return hull != 0


def _ends_of_rows(region: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "n 2"]:
    """(x, y) of the first and the last pixel of each row: a hundredth of all pixels, and of the same convex hull."""
    rows = np.flatnonzero(region.any(axis=1))
    first, last = region[rows].argmax(axis=1), region.shape[1] - 1 - region[rows, ::-1].argmax(axis=1)
    ends = np.stack([np.concatenate([first, last]), np.concatenate([rows, rows])], axis=1)
    return ends.astype(np.int32)


def _without_writing(bright: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """What is left when all that is thin is gone: 2 in the largest part, 1 in others that are not small.

    Fluid or a shadow may cut a sector into several parts.
    """
    edge = max(5, 2 * round(_WRITING * max(bright.shape) / 2) + 1)
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (edge, edge))
    # A margin of nothing: OpenCV takes what lies beyond the border for bright, and so keeps a bar along it.
    opened = cv2.morphologyEx(np.pad(bright, edge), cv2.MORPH_OPEN, brush)[edge:-edge, edge:-edge]
    count, parts, numbers, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(opened), connectivity=8)
    if count == 1:
        return np.zeros_like(bright)
    areas = numbers[:, cv2.CC_STAT_AREA]
    rank = (areas >= _PART * areas[1:].max()).astype(np.uint8)
    rank[1 + areas[1:].argmax()] = 2
    rank[0] = 0
    return rank[parts]


def _trim_left(parts: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """The parts without what lies outside of the largest one's straight left side, where it has one."""
    echoes = parts == 2
    rows = np.flatnonzero(echoes.any(axis=1))
    first = echoes[rows].argmax(axis=1)
    away = first > 1  # rows that begin at the border tell of no side
    line = _side(first[away], rows[away], least=max(8.0, _STRAIGHT * rows.size))
    if line is None:
        return parts
    slope, start = line
    height, width = echoes.shape
    outside = np.arange(width) < (slope * np.arange(height) + start - 0.5)[:, None]
    lost = (outside & echoes).sum() / echoes.sum(), (outside & (parts > 0)).sum() / (parts > 0).sum()
    return parts if lost[0] > _OUTSIDE[0] or lost[1] > _OUTSIDE[1] else np.where(outside, 0, parts).astype(np.uint8)


def _side(columns: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"], *, least: float) -> tuple[float, float] | None:
    """Slope and start of the line column = slope row + start on which most rows begin, to two pixels.

    None, where fewer than `least` rows begin on one line.
    """
    if columns.size < least:
        return None
    starts: Float[np.ndarray, "slopes n"] = np.sort(columns - _SLOPES[:, None] * rows, axis=1)
    upto = np.stack([of_slope.searchsorted(of_slope + 2.0, side="right") for of_slope in starts])
    counts = upto - np.arange(columns.size)
    slope, at = np.unravel_index(int(counts.argmax()), counts.shape)
    if counts[slope, at] < least:
        return None
    return float(_SLOPES[slope]), float(starts[slope, at])
