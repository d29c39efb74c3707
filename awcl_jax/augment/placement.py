"""Where the probe was held: crop, flip and rotation of a view, as one affine map, sampled once."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from awcl_jax.augment.draws import Draws, Scalar, within
from awcl_jax.augment.options import Augmentation, Range


def place(image: UInt8[Array, "h w"], draws: Draws, options: Augmentation, *, margin: int) -> Float[Array, "wide wide"]:
    """Crop, flip and rotate the picture with one interpolation. Outside the frame it is black."""
    h, w = image.shape
    y, x, inside, scale = positions(image.shape, draws, options, margin=margin)
    return jnp.where(inside, _sample(image, y, x, scale, coarsest=math.sqrt(h * w) / options.size), 0.0)


class Placement(NamedTuple):
    """Where a view lies: height, width and middle as shares of the frame, the angle in radians, and -1 if flipped."""

    height: Scalar
    width: Scalar
    mid_y: Scalar
    mid_x: Scalar
    angle: Scalar
    side: Scalar


def placement(draws: Draws, options: Augmentation) -> Placement:
    """Return where a view lies, as drawn."""
    height, width, mid_y, mid_x = jnp.ones(()), jnp.ones(()), jnp.full((), 0.5), jnp.full((), 0.5)
    if options.crop_area is not None:
        height, width = box(within(options.crop_area, draws["crop_area"]), options.crop_aspect, draws["crop_aspect"])
        mid_y = height / 2 + (1 - height) * draws["crop_y"]
        mid_x = width / 2 + (1 - width) * draws["crop_x"]
    angle = math.radians(options.rotation) * (2 * draws["rotation"] - 1)
    side = jnp.where(draws["flip"] < options.flip, -1.0, 1.0)
    return Placement(height, width, mid_y, mid_x, angle, side)


def positions(
    shape: tuple[int, ...], draws: Draws, options: Augmentation, *, margin: int
) -> tuple[Float[Array, "wide wide"], Float[Array, "wide wide"], Bool[Array, "wide wide"], Scalar]:
    """Return crop, flip and rotation as one affine map from pixels of the view to (y, x) in pixels of the frame.

    The picture is `margin` pixels wider than the view on each side. Also return whether a pixel is inside the frame,
    and how many pixels of the frame it spans.
    """
    h, w = shape
    height, width, mid_y, mid_x, angle, side = placement(draws, options)
    pixels = jnp.arange(-margin, options.size + margin)
    along = (pixels + 0.5) / options.size - 0.5  # pixel centres; the view reaches from -1/2 to 1/2
    down, right = along[:, None] * height * h, along[None, :] * side * width * w
    y = mid_y * h + jnp.cos(angle) * down - jnp.sin(angle) * right
    x = mid_x * w + jnp.sin(angle) * down + jnp.cos(angle) * right
    inside = (y >= 0) & (y <= h) & (x >= 0) & (x <= w)
    return y, x, inside, jnp.sqrt(height * h * width * w) / options.size


def box(area: Scalar | float, aspect: Range, draw: Scalar) -> tuple[Scalar, Scalar]:
    """Return height and width, as shares of a unit square, of a box of this area and log-uniform aspect in it.

    torchvision draws area and aspect until they fit, which favours small areas; here the area keeps its distribution.
    """
    fits = -jnp.log(area)  # height and width are at most 1 for aspects from `area` to 1 / `area`
    low, high = (jnp.clip(math.log(end), -fits, fits) for end in aspect)
    half = (low + (high - low) * draw) / 2
    root = jnp.sqrt(area)
    return root * jnp.exp(-half), root * jnp.exp(half)


def _sample(
    image: UInt8[Array, "h w"],
    y: Float[Array, "wide wide"],
    x: Float[Array, "wide wide"],
    scale: Scalar,
    *,
    coarsest: float,
) -> Float[Array, "wide wide"]:
    """Return bilinear grey at (y, x), in pixels from the frame's upper left corner, edge pixels continued outwards.

    Where a pixel of the view spans `scale` > 1 of the frame, bilinear weights skip pixels and alias. So a frame is
    halved, by averaging, until the span is nearest to 1 (0.7 to 1.4). `coarsest`, the greatest possible span, is known
    before compiling: at 256 -> 224 nothing is halved, at no cost.
    """
    levels = [image]  # bytes, which are quickly copied; rounding costs half a grey of 255
    while 2.0 ** (len(levels) - 0.5) < coarsest and min(levels[-1].shape) >= 2:
        levels.append(_halved(levels[-1]))
    pyramid = jnp.concatenate([level.ravel() for level in levels])
    chosen = jnp.clip(jnp.round(jnp.log2(scale)).astype(jnp.int32), 0, len(levels) - 1)
    start, h, w = jnp.asarray(_starts_and_shapes(levels))[chosen]

    shrink = jnp.exp2(-chosen.astype(jnp.float32))
    y = jnp.clip(y * shrink - 0.5, 0.0, (h - 1).astype(jnp.float32))
    x = jnp.clip(x * shrink - 0.5, 0.0, (w - 1).astype(jnp.float32))
    top, left = y.astype(jnp.int32), x.astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, h - 1), jnp.minimum(left + 1, w - 1)
    down, across = y - top, x - left

    def grey(row: Int[Array, "wide wide"], column: Int[Array, "wide wide"]) -> Float[Array, "wide wide"]:
        return pyramid.at[start + row * w + column].get(mode="promise_in_bounds").astype(jnp.float32) / 255

    upper = (1 - across) * grey(top, left) + across * grey(top, right)
    lower = (1 - across) * grey(bottom, left) + across * grey(bottom, right)
    return (1 - down) * upper + down * lower


def _halved(image: UInt8[Array, "h w"]) -> UInt8[Array, "h2 w2"]:
    h, w = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2  # an odd last row or column is dropped
    a, b, c, d = (image[i:h:2, j:w:2].astype(jnp.uint16) for i in (0, 1) for j in (0, 1))
    return ((a + b + c + d + 2) // 4).astype(jnp.uint8)  # a mean over a reshaped array takes twenty times as long


def _starts_and_shapes(levels: list[Array]) -> list[tuple[int, int, int]]:
    table, start = [], 0
    for level in levels:
        table.append((start, level.shape[0], level.shape[1]))
        start += level.size
    return table
