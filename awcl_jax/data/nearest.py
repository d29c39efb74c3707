"""Enlarge and shrink without new values: every pixel takes that of the nearest one."""

import functools

import numpy as np
from jaxtyping import Int, Shaped


def resize_nearest(picture: Shaped[np.ndarray, "h w"], size: tuple[int, int]) -> Shaped[np.ndarray, "new_h new_w"]:
    """Return a picture at another size; a pixel takes the value of the one in which its centre lies.

    OpenCV's INTER_NEAREST_EXACT is the same from its version 5 on, but shifts rows and columns before, and its plain
    INTER_NEAREST takes a pixel's upper left corner for its centre.

    Args:
      picture: of any type.
      size: new height and width.
    """
    rows, columns = (nearest(old, new) for old, new in zip(picture.shape, size, strict=True))
    if len(rows) > len(picture):  # copied whole, rows take less time than columns
        return picture.take(columns, axis=1).take(rows, axis=0)
    return picture.take(rows, axis=0).take(columns, axis=1)


@functools.lru_cache(maxsize=64)
def nearest(old: int, new: int) -> Int[np.ndarray, " new"]:
    """Return the row of a picture of `old` rows that each of `new` rows shows.

    A centre on the line between two rows is in the second, but for the rounding of a sum of steps, as in Pillow and
    OpenCV 5.
    """
    steps = np.full(new, old / new)
    steps[0] /= 2
    rows = np.add.accumulate(steps).astype(np.intp)
    rows.flags.writeable = False
    return rows
