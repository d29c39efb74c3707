"""Greys of a picture matched to those of a reference machine."""

import jax.numpy as jnp
from jaxtyping import Array, Float

_LEVELS = 256


def match_greys(picture: Float[Array, "size size"], reference: tuple[float, ...]) -> Float[Array, "size size"]:
    """Give the pixels that are not black the distribution of greys of a reference, in the order that they have.

        I' = Q(u(I)),  u(g) = (pixels below g + half of those at g) / pixels

    u is the rank among the pixels that are not black, counted at 256 levels, between which I' is linear; Q interpolates
    the reference's quantiles. This is histogram specification (Gonzalez and Woods, Digital Image Processing, Sec. 3.3).
    Black, level 0, stays black.

    Args:
      picture: I, 0 to 1.
      reference: Q at evenly spaced quantiles from 0 to 1.
    """
    levels = picture * (_LEVELS - 1)
    # Whole numbers, so that any order of counting gives the same.
    count = jnp.zeros(_LEVELS, jnp.int32).at[jnp.round(levels).astype(jnp.int32)].add(1).at[0].set(0)
    rank = (jnp.cumsum(count) - count / 2) / jnp.maximum(count.sum(), 1)
    quantiles = jnp.linspace(0.0, 1.0, len(reference))
    mapped = jnp.interp(rank, quantiles, jnp.asarray(reference)).at[0].set(0.0)
    low = jnp.minimum(levels.astype(jnp.int32), _LEVELS - 2)
    return mapped[low] + (levels - low) * (mapped[low + 1] - mapped[low])
