"""What happens to a picture after its placement, stage by stage; each is a picture in and a picture out."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from awcl_jax.augment import beams, echo
from awcl_jax.augment.draws import NOISE, Draws, Scalar, within
from awcl_jax.augment.greys import match_greys
from awcl_jax.augment.options import RECORDED_RANGE, Augmentation, Number, Range
from awcl_jax.augment.placement import box, placement, positions

_GRAIN = 1.0  # deviation in pixels of a grain of speckle
_BLUR_REACH = 3.0  # a Gaussian kernel ends after this many deviations
_HAZE_WIDTH = (0.03, 0.12)  # deviation of an arc of haze in depth, as a share of the view's height
_BEAM_ORIGIN = 0.5  # the beams of a shadow start this far above the picture, in picture heights
_SHADOW_EDGE = 0.15  # share of a shadow's width in which it fades in, and out
_ERASE_ASPECT = (0.5, 2.0)


class Beams(NamedTuple):
    """The beams through the pixels of a view.

    Attributes:
      depth: of each pixel from that of the view's middle, in heights of the view.
      across: where its beam leaves the array, from 0 to 1.
    """

    depth: Float[Array, "size _"]
    across: Float[Array, "size size"]


def beams_of(shape: tuple[int, ...], draws: Draws, options: Augmentation, fan: Float[Array, "6"] | None) -> Beams:
    """Return the beams of the frame's fan, or those of `fixed` where it has none."""
    along = (jnp.arange(options.size) + 0.5) / options.size
    y, x = along[:, None], along[None, :]
    fixed = Beams(y - 0.5, 0.5 + (x - 0.5) * _BEAM_ORIGIN / (_BEAM_ORIGIN + y))
    if fan is None or options.beams == "fixed":
        return fixed
    h, w = shape
    place = placement(draws, options)
    view_y, view_x, _, _ = positions(shape, draws, options, margin=0)
    radius, across = beams.polar(view_y, view_x, fan)
    middle, _ = beams.polar(place.mid_y * h, place.mid_x * w, fan)
    _, _, per_y, per_x, _, _ = fan
    height = jnp.hypot(per_y * jnp.cos(place.angle), per_x * jnp.sin(place.angle)) * place.height * h
    known = beams.is_known(fan)
    depth = (radius - middle) / jnp.where(known, height, 1.0)
    return Beams(jnp.where(known, depth, fixed.depth), jnp.where(known, across, fixed.across))


def blur_reach(options: Augmentation) -> int:
    """Return the pixels that a blurred view needs around it: where the widest kernel of the range is cut off."""
    if options.blur is None or options.blur_probability == 0:
        return 0
    return math.ceil(_BLUR_REACH * options.blur[1])


def blur(picture: Float[Array, "wide wide"], draws: Draws, options: Augmentation) -> Float[Array, "size size"]:
    """Blur the view with a Gaussian of deviation sigma; this uses up its margin of `blur_reach`.

    A sum of shifted pictures: on a CPU a fifth of the time of a banded matrix product, and exact where matrix products
    are rounded to bfloat16. The margin comes from the frame, black outside it; padding here would cost more than blur.
    """
    size, reach = options.size, blur_reach(options)
    if options.blur is None or reach == 0:
        return picture
    shifts = jnp.arange(-reach, reach + 1)
    weights = jnp.exp(-0.5 * (shifts / within(options.blur, draws["blur"])) ** 2)
    weights = jnp.where(draws["blur_on"] < options.blur_probability, weights, shifts == 0)
    weights /= weights.sum()
    for axis in (0, 1):
        parts = [jax.lax.slice_in_dim(picture, i, i + size, axis=axis) for i in range(2 * reach + 1)]
        picture = functools.reduce(jnp.add, (w * part for w, part in zip(weights, parts, strict=True)))
    return picture


def haze(
    picture: Float[Array, "size size"], depth: Float[Array, "size _"], draws: Draws, options: Augmentation
) -> Float[Array, "size size"]:
    """Add the arc of haze of `echo.add_haze`, in power."""
    if options.haze is None or options.haze_probability == 0:
        return picture
    hazy = echo.add_haze(
        picture,
        depth,
        level=within(options.haze, draws["haze"]),
        middle=draws["haze_depth"] - 0.5,
        width=within(_HAZE_WIDTH, draws["haze_width"]),
    )
    return jnp.where(draws["haze_on"] < options.haze_probability, hazy, picture)


def echoes(
    picture: Float[Array, "size size"],
    depth: Float[Array, "size _"],
    draws: Draws,
    key: Key[Array, ""],
    options: Augmentation,
) -> Float[Array, "size size"]:
    """Change the echo by a sum in decibels: E = R (I - 1) + speckle + gain + attenuation, shown as 1 + E / R'.

    R is RECORDED_RANGE and R' the dynamic range. Near black the change fades out, as there is no echo to change.
    """
    size = picture.shape[0]
    added: Array | float = 0.0
    if options.speckle is not None and options.speckle_probability > 0:
        deviation = within(options.speckle, draws["speckle"])
        deviation = jnp.where(draws["speckle_on"] < options.speckle_probability, deviation, 0.0)
        added += _speckle(jax.random.fold_in(key, NOISE), deviation, size)
    if options.gain is not None:
        added += within(options.gain, draws["gain"])
    if options.attenuation is not None:
        added += within(options.attenuation, draws["attenuation"]) * depth
    shown: Array | float = RECORDED_RANGE
    if options.dynamic_range is not None:
        shown = within(options.dynamic_range, draws["dynamic_range"])
    elif isinstance(added, float):
        return picture
    changed = jnp.clip(1 + (RECORDED_RANGE * (picture - 1) + added) / shown, 0.0, 1.0)
    return echo.where_echoes(picture, changed)


def _speckle(key: Key[Array, ""], deviation: Scalar, size: int) -> Float[Array, "size size"]:
    """Return log-compressed speckle of mean 0 and this deviation, in round grains about two pixels wide.

    The intensity of fully developed speckle is exponential, -log U, so that its decibels go as log(-log U), with a tail
    towards black. The noise is drawn on every other pixel, because random numbers are expensive, and spread by
    Gaussians whose squares sum to 1 at each pixel.
    """
    coarse = (size - 1) // 2 + 4
    uniform = jax.random.uniform(key, (coarse, coarse), minval=jnp.finfo(jnp.float32).tiny)
    # log(-log U) is a Gumbel variable, negated: its mean is minus Euler's constant, its deviation pi / sqrt(6).
    noise = (jnp.log(-jnp.log(uniform)) + np.euler_gamma) * (math.sqrt(6) / math.pi)
    away = np.arange(size)[:, None] - (2 * np.arange(coarse)[None, :] - 2.5)  # pixels from each pixel to each draw
    gaussians = np.exp(-0.5 * (away / _GRAIN) ** 2)
    spread = jnp.asarray(gaussians / np.linalg.norm(gaussians, axis=1, keepdims=True), jnp.float32)
    # The deviation goes into both factors, so that each row has its own product. With a factor common to all rows they
    # would become one big product, whose order of summation, and so a row's last bits, changes with their number.
    own = jnp.sqrt(deviation) * spread
    return own @ noise @ own.T


def despeckle(picture: Float[Array, "size size"], draws: Draws, options: Augmentation) -> Float[Array, "size size"]:
    """Smooth speckle as a machine's filter does: `echo.despeckle`."""
    if options.despeckle is None or options.despeckle_probability == 0:
        return picture
    smooth = echo.despeckle(picture, within(options.despeckle, draws["despeckle"]))
    return jnp.where(draws["despeckle_on"] < options.despeckle_probability, smooth, picture)


def grey_map(picture: Float[Array, "size size"], draws: Draws, options: Augmentation) -> Float[Array, "size size"]:
    """Apply gamma, brightness; then jitter: brightness, contrast, each clipped at black and white as in torchvision."""
    if options.gamma is not None:
        picture = jnp.exp(within(options.gamma, draws["gamma"]) * jnp.log(picture))  # 0 stays 0: exp(-inf)
    if options.brightness is not None:
        picture = jnp.minimum(within(options.brightness, draws["brightness"]) * picture, 1.0)
    jitter = draws["jitter_on"] < options.jitter_probability
    if options.jitter_brightness is not None:
        factor = jnp.where(jitter, within(options.jitter_brightness, draws["jitter_brightness"]), 1.0)
        picture = jnp.minimum(factor * picture, 1.0)
    if options.jitter_contrast is not None:
        factor = jnp.where(jitter, within(options.jitter_contrast, draws["jitter_contrast"]), 1.0)
        picture = jnp.clip(factor * picture + (1 - factor) * _mean(picture), 0.0, 1.0)
    return picture


def matched_greys(picture: Float[Array, "size size"], draws: Draws, options: Augmentation) -> Float[Array, "size size"]:
    """Map greys to those of a reference machine: `greys.match_greys`."""
    if options.greys is None or options.greys_probability == 0:
        return picture
    matched = match_greys(picture, tuple(options.greys))
    return jnp.where(draws["greys_on"] < options.greys_probability, matched, picture)


def _mean(picture: Float[Array, "size size"]) -> Scalar:
    """Return the mean grey, summed in whole numbers, so that any order of summation gives the same value."""
    for _ in range(2):
        whole = jnp.round(picture * 2**20).astype(jnp.uint32)  # 4,095 greys of 1 fit
        picture = whole.sum(-1, dtype=jnp.uint32).astype(jnp.float32) / (2**20 * picture.shape[-1])
    return picture


def occlude(
    picture: Float[Array, "size size"], across: Float[Array, "size size"], draws: Draws, options: Augmentation
) -> Float[Array, "size size"]:
    """Darken a shadow, and black out corners and an erased box."""
    along = (jnp.arange(picture.shape[0]) + 0.5) / picture.shape[0]
    y, x = along[:, None], along[None, :]
    if options.shadow is not None and options.shadow_probability > 0:
        shadow = _shadow(across, draws, options.shadow)
        picture *= jnp.where(draws["shadow_on"] < options.shadow_probability, 1 - shadow, 1.0)
    if options.corners is not None and options.corner_probability > 0:
        picture = jnp.where(_in_corner(y, x, draws, options.corners, options.corner_probability), 0.0, picture)
    if options.erase is not None and options.erase_probability > 0:
        height, width = box(within(options.erase, draws["erase"]), _ERASE_ASPECT, draws["erase_aspect"])
        top, left = (1 - height) * draws["erase_y"], (1 - width) * draws["erase_x"]
        erased = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        picture = jnp.where(erased & (draws["erase_on"] < options.erase_probability), 0.0, picture)
    return picture


def _shadow(across: Float[Array, "size size"], draws: Draws, widths: Range) -> Float[Array, "size size"]:
    """Return how dark each pixel is, 0 to 1; `across` is where its beam leaves the array."""
    width = within(widths, draws["shadow"])
    middle = width / 2 + (1 - width) * draws["shadow_x"]
    fade = _SHADOW_EDGE * width
    return jnp.clip((width / 2 - jnp.abs(across - middle)) / fade + 0.5, 0.0, 1.0)


def _in_corner(
    y: Float[Array, "size 1"],
    x: Float[Array, "1 size"],
    draws: Draws,
    edges: Range,
    probability: Number,
) -> Bool[Array, "size size"]:
    height, width = within(edges, draws["corner_height"]), within(edges, draws["corner_width"])
    on = [draws[f"corner_{i}_on"] < probability for i in range(4)]
    up, low, left, right = y < height, y > 1 - height, x < width, x > 1 - width
    return (up & left & on[0]) | (up & right & on[1]) | (low & left & on[2]) | (low & right & on[3])
