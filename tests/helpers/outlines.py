"""Outlines of sectors, drawn by eye on real clips and frames."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool

OUTLINES = Path(__file__).parents[1] / "stored" / "sector_outlines.json"


def fill(polygon: Sequence[Sequence[float]], size: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    """Return the pixels with their centre in a convex polygon, whose corners (x, y) count from the picture's corner."""
    region = np.zeros(size, np.uint8)
    corners = np.round((np.array(polygon) - 0.5) * 16).astype(np.int32)
    cv2.fillConvexPoly(region, corners, color=1, shift=4)
    return region != 0
