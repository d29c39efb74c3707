"""Rotary positions of patches (Su et al. 2021, RoFormer, Eq. 34), for both axes as in DINOv3 (Simeoni et al. 2025).

The centre of the patch in row i of n and column j of m is at p = (2 (i + 1/2) / n - 1, 2 (j + 1/2) / m - 1), from -1 to
1 on each axis. With D = d / 4 periods for the d features of a head, its angles are

    T_k = 100^(k / D),    k = 0, ..., D - 1
    a   = 2 pi (p_0 / T_0, ..., p_0 / T_(D-1), p_1 / T_0, ..., p_1 / T_(D-1))

and its query or key, of halves u and v of d / 2 features each, is turned to

    u' = u cos a - v sin a,    v' = v cos a + u sin a

The product of a turned query and a turned key depends on p only by the difference of their places. Tokens before the
patches have the angles 0: they stay. DINOv3's own training scales p at random, which is not done here.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_BASE = 100.0


def periods(features: int) -> Float[np.ndarray, " k"]:
    """Return T for heads of this number of features, in float64."""
    count = features // 4
    return _BASE ** (np.arange(count) / count)


def angles(grid: tuple[int, int], *, before: int, features: int) -> Float[np.ndarray, "t a"]:
    """Return the angles of every token, in float64.

    Args:
      grid: rows and columns of the patches.
      before: number of tokens before the patches.
      features: d, of a head.
    """
    down, across = (2 * (np.arange(n) + 0.5) / n - 1 for n in grid)
    places = np.stack(np.meshgrid(down, across, indexing="ij"), axis=-1).reshape(-1, 2)
    turned = 2 * np.pi * (places[:, :, None] / periods(features)).reshape(len(places), -1)
    return np.concatenate([np.zeros((before, turned.shape[1])), turned])


def turn(x: Float[Array, "b t h d"], grid: tuple[int, int]) -> Float[Array, "b t h d"]:
    """Return queries or keys of each head, those of the patches turned by their places; in float32 on the way.

    Args:
      x: of tokens whose last are the patches, row by row.
      grid: rows and columns of the patches.
    """
    a = angles(grid, before=x.shape[1] - grid[0] * grid[1], features=x.shape[-1])
    cos, sin = (jnp.asarray(part, jnp.float32)[None, :, None] for part in (np.cos(a), np.sin(a)))
    u, v = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([u * cos - v * sin, v * cos + u * sin], axis=-1).astype(x.dtype)
