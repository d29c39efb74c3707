"""Position embeddings of a vision transformer on another grid of patches, as the libraries of its weights compute it.

A table of grid x grid embeddings is a picture of d channels, enlarged or reduced along each axis by cubic convolution
(Keys 1981). With the kernel k_a and the place u_i, in the table, of the output's row i, the weight of row j is

    w_ij = k_a((u_i - j) / s) / sum_j k_a((u_i - j) / s)

    way           of                            u_i                        a      s                 beyond the edge
    antialiased   timm, open_clip, DINOv2       (i + 1/2) n / m - 1/2      -1/2   max(1, n / m)     left out
                  with registers
    plain         transformers, MAE             (i + 1/2) n / m - 1/2      -3/4   1                 the edge's row
    offset        DINO, DINOv2                  (i + 1/2) n / (m + 0.1)    -3/4   1                 the edge's row
                                                - 1/2
    corners       torchvision                   i (n - 1) / (m - 1)        -3/4   1                 the edge's row

from n rows to m. The offset of 0.1 was to protect a size from rounding; it also moves every place, and weights are used
with it.
"""

import numpy as np
from jaxtyping import Float

WAYS = ("antialiased", "plain", "offset", "corners")


def resample_weights(rows: int, wanted: int, *, way: str) -> Float[np.ndarray, "wanted rows"]:
    """Return the weights of a table's rows (or columns) in each row of a table of `wanted` rows, in float64.

    Args:
      rows: n, of the table.
      wanted: m, of the result.
      way: one of WAYS.
    """
    assert way in WAYS, way
    if rows == wanted:
        return np.eye(rows)
    i, scale, a = np.arange(wanted), 1.0, -0.75
    places: Float[np.ndarray, " wanted"]
    if way == "corners":
        places = i * (rows - 1) / max(wanted - 1, 1)
    else:
        places = (i + 0.5) * rows / (wanted + (0.1 if way == "offset" else 0.0)) - 0.5
    if way == "antialiased":
        scale, a = max(1.0, rows / wanted), -0.5
    # Rows enough beyond both edges for any kernel here.
    beyond = int(np.ceil(2 * scale)) + 1
    j = np.arange(-beyond, rows + beyond)
    weights = _cubic((places[:, None] - j) / scale, a)
    if way == "antialiased":
        inside = weights[:, beyond:-beyond]
        return inside / inside.sum(axis=1, keepdims=True)
    onto = np.zeros((j.size, rows))
    onto[np.arange(j.size), np.clip(j, 0, rows - 1)] = 1
    return weights @ onto


def resample_positions(
    table: Float[np.ndarray, "rows columns d"], grid: tuple[int, int], *, way: str
) -> Float[np.ndarray, "rows2 columns2 d"]:
    """Return position embeddings for another grid of patches; the same ones, bit for bit, if it is the table's.

    Args:
      table: embeddings of the patches, row by row.
      grid: rows and columns of the result.
      way: one of WAYS.
    """
    if table.shape[:2] == grid:
        return table
    down, across = (resample_weights(n, m, way=way) for n, m in zip(table.shape, grid, strict=False))
    return np.einsum("ai,bj,ijd->abd", down, across, table, optimize=True).astype(np.float32)


def _cubic(x: Float[np.ndarray, "wanted rows"], a: float) -> Float[np.ndarray, "wanted rows"]:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
