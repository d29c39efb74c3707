"""Rotary positions of patches by loops over complex numbers in float64."""

import cmath
import math

import numpy as np
from jaxtyping import Float


def turned(x: Float[np.ndarray, "t h d"], grid: tuple[int, int]) -> Float[np.ndarray, "t h d"]:
    """Return queries or keys with those of the last tokens, the patches, turned: z = u + i v times e^(i a)."""
    rows, columns = grid
    out = np.array(x, np.float64)
    half, quarter = x.shape[2] // 2, x.shape[2] // 4
    for row in range(rows):
        for column in range(columns):
            token = len(x) - rows * columns + row * columns + column
            centres = ((row + 0.5) / rows, (column + 0.5) / columns)
            for head in range(x.shape[1]):
                for j in range(half):
                    place = 2 * centres[j // quarter] - 1
                    angle = 2 * math.pi * place / 100 ** ((j % quarter) / quarter)
                    z = complex(x[token, head, j], x[token, head, half + j]) * cmath.exp(1j * angle)
                    out[token, head, j], out[token, head, half + j] = z.real, z.imag
    return out
