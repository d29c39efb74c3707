"""The beams of a fan, through points of its frame.

A fan is six numbers, as `awcl_jax.data.beams` makes them for a frame that is made square:

    apex_y, apex_x    in pixels from the square's upper left corner
    per_y, per_x      pixels of the frame, as stored, in one of the square, down and across
    left, right       angles of its sides from straight down, in radians; to the left they are below 0

All are 0 where the fan is unknown. Angles and radii are those of the frame as stored, which a square may squash.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def is_known(fan: Float[Array, "6"]) -> Bool[Array, ""]:
    """Return whether these numbers are of a fan."""
    return fan[5] > fan[4]


def polar(
    y: Float[Array, "*points"], x: Float[Array, "*points"], fan: Float[Array, "6"]
) -> tuple[Float[Array, "*points"], Float[Array, "*points"]]:
    """Return where points lie in a fan.

    Args:
      y, x: in pixels of the square.
      fan: its fan.

    Returns:
      the radius from the apex, in pixels of the frame as stored; and the beam, 0 at the left side and 1 at the right.
    """
    apex_y, apex_x, per_y, per_x, left, right = fan
    down, across = per_y * (y - apex_y), per_x * (x - apex_x)
    opening = jnp.where(is_known(fan), right - left, 1.0)
    return jnp.hypot(down, across), (jnp.arctan2(across, down) - left) / opening
