"""Changes of the echo in a log-compressed picture: grey 0 to 1, with `RECORDED_RANGE` decibels from black to white."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from awcl_jax.augment.options import RECORDED_RANGE

_NO_ECHO = 0.1  # changes fade in from black to this grey, so that they neither brighten the outside nor posterise noise
_REACH = 2  # a speckle filter's window reaches this many pixels each way: 5 x 5


def where_echoes(picture: Float[Array, "size size"], changed: Float[Array, "size size"]) -> Float[Array, "size size"]:
    """Return the changed picture; near black the change fades out, as there is no echo to change."""
    return picture + jnp.minimum(picture / _NO_ECHO, 1.0) * (changed - picture)


def add_haze(
    picture: Float[Array, "size size"],
    depth: Float[Array, "size _"],
    *,
    level: Float[Array, ""],
    middle: Float[Array, ""],
    width: Float[Array, ""],
) -> Float[Array, "size size"]:
    """Add an arc of haze at depth m, of deviation w and of H decibels at its brightest, to the power of the echo.

        I' = 1 + 10 / R log10(10^(R (I - 1) / 10) + 10^(H / 10) exp(-(d - m)^2 / (2 w^2))), at most 1

    R is RECORDED_RANGE. Powers add, because the phases of a reverberation and of the tissue at its depth are unrelated.

    Args:
      picture: I.
      depth: d of each pixel.
      level: H, below white.
      middle: m, in the unit of `depth`.
      width: w, in the unit of `depth`.
    """
    per_decibel = math.log(10) / 10
    haze = jnp.exp(per_decibel * level - ((depth - middle) / width) ** 2 / 2)
    power = jnp.exp(per_decibel * RECORDED_RANGE * (picture - 1)) + haze
    return where_echoes(picture, jnp.minimum(1 + jnp.log(power) / (per_decibel * RECORDED_RANGE), 1.0))


def despeckle(picture: Float[Array, "size size"], deviation: Float[Array, ""]) -> Float[Array, "size size"]:
    """Smooth speckle by mean m and variance v of the grey I in the 5 x 5 pixels around each, and leave edges.

        I' = m + k (I - m),  k = Q / (Q + s^2),  Q = max(v - s^2, 0)

    This is the filter for additive noise of deviation s of Lee 1980, "Digital image enhancement and noise filtering by
    use of local statistics" (IEEE TPAMI 2, 165-168): speckle multiplies the echo, so it adds to the decibels.

    Args:
      picture: I.
      deviation: of the speckle in decibels; s is its share of RECORDED_RANGE.
    """
    noise = (deviation / RECORDED_RANGE) ** 2
    mean = _local_mean(picture)
    beyond = jnp.maximum(_local_mean(picture**2) - mean**2 - noise, 0.0)
    return where_echoes(picture, mean + beyond / (beyond + noise) * (picture - mean))


def _local_mean(picture: Float[Array, "size size"]) -> Float[Array, "size size"]:
    """Return the mean of the window around each pixel, of its pixels within the picture."""
    size, at = picture.shape[0], np.arange(picture.shape[0])
    count = np.minimum(at + _REACH, size - 1) - np.maximum(at - _REACH, 0) + 1
    total = jnp.pad(picture, _REACH)
    for axis in (0, 1):
        parts = [jax.lax.slice_in_dim(total, i, i + size, axis=axis) for i in range(2 * _REACH + 1)]
        total = functools.reduce(jnp.add, parts)
    return total / jnp.asarray(np.outer(count, count), jnp.float32)
