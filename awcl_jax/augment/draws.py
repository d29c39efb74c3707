"""The random numbers of a view, by its address: (seed, step, row, view)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from awcl_jax.augment.options import Range

# One random number each, at a fixed position: turning an augmentation on or off does not change the other draws. New
# ones are appended, so that the views of earlier versions stay as they are.
DRAWS = (
    *("crop_area", "crop_aspect", "crop_y", "crop_x", "flip", "rotation"),
    *("blur", "blur_on", "speckle", "speckle_on", "gain", "attenuation", "dynamic_range"),
    *("gamma", "brightness", "jitter_on", "jitter_brightness", "jitter_contrast"),
    *("shadow", "shadow_on", "shadow_x"),
    *("corner_height", "corner_width", "corner_0_on", "corner_1_on", "corner_2_on", "corner_3_on"),
    *("erase", "erase_on", "erase_aspect", "erase_y", "erase_x"),
    *("haze", "haze_on", "haze_depth", "haze_width", "despeckle", "despeckle_on", "greys_on"),
)

NOISE = 0x5BEC  # folded into a view's key for its noise; any number beyond the draws above

Scalar = Float[Array, ""]
Draws = Mapping[str, Scalar]
"""Name -> random number."""


def view_keys(
    *, rows: Int[Array, " b"], step: int | Int[Array, ""], seed: int | Int[Array, ""], views: int = 2
) -> Key[Array, "v b"]:
    """Return the key of each view, by its address; what else is drawn from it folds a number of its own into it."""
    return jnp.stack([keys_of(seed, step, rows, view) for view in range(views)])


def keys_of(
    seed: int | Int[Array, ""], step: int | Int[Array, ""], rows: Int[Array, " b"], view: int | Int[Array, ""]
) -> Key[Array, " b"]:
    """Return the key of one view of each row."""
    of_step = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(of_step, row), view))(rows)


def draw_all(key: Key[Array, ""]) -> Draws:
    """Return the random numbers of a view, uniform in [0, 1), by name."""
    return dict(zip(DRAWS, jax.random.uniform(key, (len(DRAWS),)), strict=True))


def within(bounds: Range, draw: Scalar) -> Scalar:
    """Return a uniform number between two bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * draw
