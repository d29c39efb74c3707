"""Random views of ultrasound frames, made on the device, each from an address: (seed, step, row, view).

A draw is a function of that address only, so a row gets the same views on 1, 2 or 8 devices, after a restart, and in
any batch. A view is made in this order, which roughly follows the physics:

    frame -> placement (crop, flip, rotation: where the probe was held)
          -> blur (the width of the beam)
          -> haze (the echo of a reverberation, added in power)
          -> echoes in decibels (speckle, gain, depth attenuation, dynamic range: what the machine received and showed)
          -> speckle filter (what the machine smoothed)
          -> grey map (gamma, brightness, and the colour jitter of photographs)
          -> greys of a reference machine
          -> occlusion (shadow, overlay corners, an erased box)
          -> normalisation

Grey is 0 to 1 until the last step. A frame is log compressed, so a factor on the echo is a sum on the grey:
`RECORDED_RANGE` decibels are between black and white. Black is *no echo* (outside the sector) and stays
black.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from awcl_jax.augment import beams, echo
from awcl_jax.augment.greys import match_greys
from awcl_jax.augment.options import RECORDED_RANGE, Augmentation, Number, Range
from awcl_jax.runtime.errors import InputError

_GRAIN = 1.0  # deviation in pixels of a grain of speckle
_BLUR_REACH = 3.0  # a Gaussian kernel ends after this many deviations
_HAZE_WIDTH = (0.03, 0.12)  # deviation of an arc of haze in depth, as a share of the view's height
_BEAM_ORIGIN = 0.5  # the beams of a shadow start this far above the picture, in picture heights
_SHADOW_EDGE = 0.15  # share of a shadow's width in which it fades in, and out
_ERASE_ASPECT = (0.5, 2.0)

# One random number each, at a fixed position: turning an augmentation on or off does not change the other draws. New
# ones are appended, so that the views of earlier versions stay as they are.
_DRAWS = (
    *("crop_area", "crop_aspect", "crop_y", "crop_x", "flip", "rotation"),
    *("blur", "blur_on", "speckle", "speckle_on", "gain", "attenuation", "dynamic_range"),
    *("gamma", "brightness", "jitter_on", "jitter_brightness", "jitter_contrast"),
    *("shadow", "shadow_on", "shadow_x"),
    *("corner_height", "corner_width", "corner_0_on", "corner_1_on", "corner_2_on", "corner_3_on"),
    *("erase", "erase_on", "erase_aspect", "erase_y", "erase_x"),
    *("haze", "haze_on", "haze_depth", "haze_width", "despeckle", "despeckle_on", "greys_on"),
)

_NOISE = 0x5BEC  # folded into a view's key for its noise; any number beyond the draws above

_Scalar = Float[Array, ""]
_Draws = Mapping[str, _Scalar]


@functools.partial(jax.jit, static_argnames=("options",))
def augment(
    images: UInt8[Array, "b h w"],
    *,
    rows: Int[Array, " b"],
    view: int | Int[Array, ""],
    step: int | Int[Array, ""],
    seed: int | Int[Array, ""],
    options: Augmentation,
    fans: Float[Array, "b 6"] | None = None,
) -> Float[Array, "b size size 1"]:
    """Make one random view of each frame.

    Args:
      images: grey frames [b, h, w].
      rows: global row number of each frame in its batch.
      view: number of the view; 0 and 1 are those of `two_views`.
      step: training step. A new step, view or seed does not compile again.
      seed: of the run, from 0 to 2**31 - 1.
      options: which augmentations.
      fans: of the frames, as `FrameReader.fans` gives them; needed if `options.beams` is "fan".

    Returns:
      views float32 [b, size, size, 1], (grey - mean) / std.

    Raises:
      InputError: the frames are not uint8, or their fans are needed and missing.
    """
    _check_frames(images, dims=(3,))
    _check_fans(fans, options)
    make = functools.partial(_view, options=options)
    return jax.vmap(make)(images, _keys(seed, step, rows, view), fans)


@functools.partial(jax.jit, static_argnames=("options",))
def augment_with_masks(
    images: UInt8[Array, "b h w"],
    masks: UInt8[Array, "b h w"],
    *,
    rows: Int[Array, " b"],
    step: int | Int[Array, ""],
    seed: int | Int[Array, ""],
    options: Augmentation,
    fans: Float[Array, "b 6"] | None = None,
) -> tuple[Float[Array, "b size size 1"], UInt8[Array, "b size size"]]:
    """Make one random view of each frame, and place its mask by the same crop, flip and rotation.

    A pixel of the mask takes the class of the nearest one; outside the frame it is 0. Occlusion does not change masks:
    anatomy in a shadow still exists.

    Args:
      images: grey frames [b, h, w].
      masks: a class id for each of their pixels.
      rows: global row number of each frame in its batch.
      step: training step.
      seed: of the run, from 0 to 2**31 - 1.
      options: which augmentations.
      fans: of the frames, as `FrameReader.fans` gives them; needed if `options.beams` is "fan".

    Returns:
      `augment` with view=0, and masks [b, size, size].

    Raises:
      InputError: as `augment`.
    """
    views = augment(images, rows=rows, view=0, step=step, seed=seed, options=options, fans=fans)

    def place(mask: UInt8[Array, "h w"], key: Key[Array, ""]) -> UInt8[Array, "size size"]:
        y, x, inside, _ = _positions(mask.shape, _draw(key), options, margin=0)
        row, column = (jnp.clip(at.astype(jnp.int32), 0, edge - 1) for at, edge in zip((y, x), mask.shape, strict=True))
        return jnp.where(inside, mask[row, column], jnp.uint8(0))

    return views, jax.vmap(place)(masks, _keys(seed, step, rows, 0))


@functools.partial(jax.jit, static_argnames=("options",))
def two_views(
    images: UInt8[Array, "b h w"] | UInt8[Array, "b 2 h w"],
    *,
    rows: Int[Array, " b"],
    step: int | Int[Array, ""],
    seed: int | Int[Array, ""],
    options: Augmentation,
    fans: Float[Array, "b 6"] | Float[Array, "b 2 6"] | None = None,
) -> Float[Array, "2 b size size 1"]:
    """Make two random views of each row.

    Args:
      images: one frame a row [b, h, w], of which both views are made, or two frames a row [b, 2, h, w], for a view
        of each (for example of one anatomy in two scans).
      rows: global row number of each row.
      step: training step.
      seed: of the run, from 0 to 2**31 - 1.
      options: which augmentations.
      fans: of the frames, as `FrameReader.fans` gives them; needed if `options.beams` is "fan".

    Returns:
      views float32 [2, b, size, size, 1]; views[v] is `augment` with view=v.

    Raises:
      InputError: the frames are not uint8, their shape is neither of the two, or their fans are needed and missing.
    """
    _check_frames(images, dims=(3, 4))
    _check_fans(fans, options)
    keys = view_keys(rows=rows, step=step, seed=seed)
    make = jax.vmap(functools.partial(_view, options=options))
    of_frame = None if images.ndim == 3 else 1
    return jax.vmap(make, in_axes=(of_frame, 0, None if fans is None else of_frame))(images, keys, fans)


@functools.partial(jax.jit, static_argnames=("options",))
def centre_view(images: UInt8[Array, "b h w"], *, options: Augmentation) -> Float[Array, "b size size 1"]:
    """Make the view for evaluation: the whole frame resized, with nothing random.

    It is sampled like the random views, so that evaluation sees pixels like those of training.

    Args:
      images: grey frames [b, h, w].
      options: only size, mean and std are used.

    Returns:
      views float32 [b, size, size, 1], (grey - mean) / std.

    Raises:
      InputError: the frames are not uint8.
    """
    _check_frames(images, dims=(3,))
    still = Augmentation.off(size=options.size, mean=options.mean, std=options.std)
    unread = {name: jnp.zeros(()) for name in _DRAWS}
    return jax.vmap(lambda image: _normalise(_place(image, unread, still, margin=0), still))(images)


def _check_frames(images: Array, *, dims: tuple[int, ...]) -> None:
    if images.dtype != jnp.uint8:
        raise InputError(f"Frames to augment must be uint8, 0 to 255; got {images.dtype}. Convert them first.")
    if images.ndim not in dims or (images.ndim == 4 and images.shape[1] != 2):
        raise InputError(f"Frames to augment must be [b, h, w]{' or [b, 2, h, w]' * (4 in dims)}; got {images.shape}.")


def _check_fans(fans: Array | None, options: Augmentation) -> None:
    if options.beams == "fan" and fans is None:
        raise InputError('beams="fan" of an augmentation needs the fans of the frames (fans=). Pass FrameReader.fans.')


def view_keys(
    *, rows: Int[Array, " b"], step: int | Int[Array, ""], seed: int | Int[Array, ""], views: int = 2
) -> Key[Array, "v b"]:
    """Return the key of each view, by its address; what else is drawn from it folds a number of its own into it."""
    return jnp.stack([_keys(seed, step, rows, view) for view in range(views)])


def _keys(
    seed: int | Int[Array, ""], step: int | Int[Array, ""], rows: Int[Array, " b"], view: int | Int[Array, ""]
) -> Key[Array, " b"]:
    of_step = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(of_step, row), view))(rows)


def _view(
    image: UInt8[Array, "h w"], key: Key[Array, ""], fan: Float[Array, "6"] | None, options: Augmentation
) -> Float[Array, "size size 1"]:
    draws = _draw(key)
    picture = _place(image, draws, options, margin=_blur_reach(options))
    picture = _blur(picture, draws, options)
    through = _beams(image.shape, draws, options, fan)
    picture = _haze(picture, through.depth, draws, options)
    picture = _echoes(picture, through.depth, draws, key, options)
    picture = _despeckle(picture, draws, options)
    picture = _grey_map(picture, draws, options)
    picture = _match_greys(picture, draws, options)
    picture = _occlude(picture, through.across, draws, options)
    return _normalise(picture, options)


def _draw(key: Key[Array, ""]) -> _Draws:
    return dict(zip(_DRAWS, jax.random.uniform(key, (len(_DRAWS),)), strict=True))


def _within(bounds: Range, draw: _Scalar) -> _Scalar:
    return bounds[0] + (bounds[1] - bounds[0]) * draw


def _box(area: _Scalar | float, aspect: Range, draw: _Scalar) -> tuple[_Scalar, _Scalar]:
    """Return height and width, as shares of a unit square, of a box of this area and log-uniform aspect in it.

    torchvision draws area and aspect until they fit, which favours small areas; here the area keeps its distribution.
    """
    fits = -jnp.log(area)  # height and width are at most 1 for aspects from `area` to 1 / `area`
    low, high = (jnp.clip(math.log(end), -fits, fits) for end in aspect)
    half = (low + (high - low) * draw) / 2
    root = jnp.sqrt(area)
    return root * jnp.exp(-half), root * jnp.exp(half)


def _place(
    image: UInt8[Array, "h w"], draws: _Draws, options: Augmentation, *, margin: int
) -> Float[Array, "wide wide"]:
    """Crop, flip and rotate the picture with one interpolation. Outside the frame it is black."""
    h, w = image.shape
    y, x, inside, scale = _positions(image.shape, draws, options, margin=margin)
    return jnp.where(inside, _sample(image, y, x, scale, coarsest=math.sqrt(h * w) / options.size), 0.0)


class _Placement(NamedTuple):
    """Where a view lies: height, width and middle as shares of the frame, the angle in radians, and -1 if flipped."""

    height: _Scalar
    width: _Scalar
    mid_y: _Scalar
    mid_x: _Scalar
    angle: _Scalar
    side: _Scalar


def _placement(draws: _Draws, options: Augmentation) -> _Placement:
    height, width, mid_y, mid_x = jnp.ones(()), jnp.ones(()), jnp.full((), 0.5), jnp.full((), 0.5)
    if options.crop_area is not None:
        height, width = _box(_within(options.crop_area, draws["crop_area"]), options.crop_aspect, draws["crop_aspect"])
        mid_y = height / 2 + (1 - height) * draws["crop_y"]
        mid_x = width / 2 + (1 - width) * draws["crop_x"]
    angle = math.radians(options.rotation) * (2 * draws["rotation"] - 1)
    side = jnp.where(draws["flip"] < options.flip, -1.0, 1.0)
    return _Placement(height, width, mid_y, mid_x, angle, side)


def _positions(
    shape: tuple[int, ...], draws: _Draws, options: Augmentation, *, margin: int
) -> tuple[Float[Array, "wide wide"], Float[Array, "wide wide"], Bool[Array, "wide wide"], _Scalar]:
    """Return crop, flip and rotation as one affine map from pixels of the view to (y, x) in pixels of the frame.

    The picture is `margin` pixels wider than the view on each side. Also return whether a pixel is inside the frame,
    and how many pixels of the frame it spans.
    """
    h, w = shape
    height, width, mid_y, mid_x, angle, side = _placement(draws, options)
    pixels = jnp.arange(-margin, options.size + margin)
    along = (pixels + 0.5) / options.size - 0.5  # pixel centres; the view reaches from -1/2 to 1/2
    down, right = along[:, None] * height * h, along[None, :] * side * width * w
    y = mid_y * h + jnp.cos(angle) * down - jnp.sin(angle) * right
    x = mid_x * w + jnp.sin(angle) * down + jnp.cos(angle) * right
    inside = (y >= 0) & (y <= h) & (x >= 0) & (x <= w)
    return y, x, inside, jnp.sqrt(height * h * width * w) / options.size


class _Beams(NamedTuple):
    """The beams through the pixels of a view.

    Attributes:
      depth: of each pixel from that of the view's middle, in heights of the view.
      across: where its beam leaves the array, from 0 to 1.
    """

    depth: Float[Array, "size _"]
    across: Float[Array, "size size"]


def _beams(shape: tuple[int, ...], draws: _Draws, options: Augmentation, fan: Float[Array, "6"] | None) -> _Beams:
    """Return the beams of the frame's fan, or those of `fixed` where it has none."""
    along = (jnp.arange(options.size) + 0.5) / options.size
    y, x = along[:, None], along[None, :]
    fixed = _Beams(y - 0.5, 0.5 + (x - 0.5) * _BEAM_ORIGIN / (_BEAM_ORIGIN + y))
    if fan is None or options.beams == "fixed":
        return fixed
    h, w = shape
    place = _placement(draws, options)
    view_y, view_x, _, _ = _positions(shape, draws, options, margin=0)
    radius, across = beams.polar(view_y, view_x, fan)
    middle, _ = beams.polar(place.mid_y * h, place.mid_x * w, fan)
    _, _, per_y, per_x, _, _ = fan
    height = jnp.hypot(per_y * jnp.cos(place.angle), per_x * jnp.sin(place.angle)) * place.height * h
    known = beams.is_known(fan)
    depth = (radius - middle) / jnp.where(known, height, 1.0)
    return _Beams(jnp.where(known, depth, fixed.depth), jnp.where(known, across, fixed.across))


def _sample(
    image: UInt8[Array, "h w"],
    y: Float[Array, "wide wide"],
    x: Float[Array, "wide wide"],
    scale: _Scalar,
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


def _blur_reach(options: Augmentation) -> int:
    """Return the pixels that a blurred view needs around it: where the widest kernel of the range is cut off."""
    if options.blur is None or options.blur_probability == 0:
        return 0
    return math.ceil(_BLUR_REACH * options.blur[1])


def _blur(picture: Float[Array, "wide wide"], draws: _Draws, options: Augmentation) -> Float[Array, "size size"]:
    """Blur the view with a Gaussian of deviation sigma; this uses up its margin of `_blur_reach`.

    A sum of shifted pictures: on a CPU a fifth of the time of a banded matrix product, and exact where matrix products
    are rounded to bfloat16. The margin comes from the frame, black outside it; padding here would cost more than blur.
    """
    size, reach = options.size, _blur_reach(options)
    if options.blur is None or reach == 0:
        return picture
    shifts = jnp.arange(-reach, reach + 1)
    weights = jnp.exp(-0.5 * (shifts / _within(options.blur, draws["blur"])) ** 2)
    weights = jnp.where(draws["blur_on"] < options.blur_probability, weights, shifts == 0)
    weights /= weights.sum()
    for axis in (0, 1):
        parts = [jax.lax.slice_in_dim(picture, i, i + size, axis=axis) for i in range(2 * reach + 1)]
        picture = functools.reduce(jnp.add, (w * part for w, part in zip(weights, parts, strict=True)))
    return picture


def _haze(
    picture: Float[Array, "size size"], depth: Float[Array, "size _"], draws: _Draws, options: Augmentation
) -> Float[Array, "size size"]:
    if options.haze is None or options.haze_probability == 0:
        return picture
    hazy = echo.add_haze(
        picture,
        depth,
        level=_within(options.haze, draws["haze"]),
        middle=draws["haze_depth"] - 0.5,
        width=_within(_HAZE_WIDTH, draws["haze_width"]),
    )
    return jnp.where(draws["haze_on"] < options.haze_probability, hazy, picture)


def _echoes(
    picture: Float[Array, "size size"],
    depth: Float[Array, "size _"],
    draws: _Draws,
    key: Key[Array, ""],
    options: Augmentation,
) -> Float[Array, "size size"]:
    """Change the echo by a sum in decibels: E = R (I - 1) + speckle + gain + attenuation, shown as 1 + E / R'.

    R is RECORDED_RANGE and R' the dynamic range. Near black the change fades out, as there is no echo to change.
    """
    size = picture.shape[0]
    added: Array | float = 0.0
    if options.speckle is not None and options.speckle_probability > 0:
        deviation = _within(options.speckle, draws["speckle"])
        deviation = jnp.where(draws["speckle_on"] < options.speckle_probability, deviation, 0.0)
        added += _speckle(jax.random.fold_in(key, _NOISE), deviation, size)
    if options.gain is not None:
        added += _within(options.gain, draws["gain"])
    if options.attenuation is not None:
        added += _within(options.attenuation, draws["attenuation"]) * depth
    shown: Array | float = RECORDED_RANGE
    if options.dynamic_range is not None:
        shown = _within(options.dynamic_range, draws["dynamic_range"])
    elif isinstance(added, float):
        return picture
    changed = jnp.clip(1 + (RECORDED_RANGE * (picture - 1) + added) / shown, 0.0, 1.0)
    return echo.where_echoes(picture, changed)


def _speckle(key: Key[Array, ""], deviation: _Scalar, size: int) -> Float[Array, "size size"]:
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


def _despeckle(picture: Float[Array, "size size"], draws: _Draws, options: Augmentation) -> Float[Array, "size size"]:
    if options.despeckle is None or options.despeckle_probability == 0:
        return picture
    smooth = echo.despeckle(picture, _within(options.despeckle, draws["despeckle"]))
    return jnp.where(draws["despeckle_on"] < options.despeckle_probability, smooth, picture)


def _grey_map(picture: Float[Array, "size size"], draws: _Draws, options: Augmentation) -> Float[Array, "size size"]:
    """Apply gamma, brightness; then jitter: brightness, contrast, each clipped at black and white as in torchvision."""
    if options.gamma is not None:
        picture = jnp.exp(_within(options.gamma, draws["gamma"]) * jnp.log(picture))  # 0 stays 0: exp(-inf)
    if options.brightness is not None:
        picture = jnp.minimum(_within(options.brightness, draws["brightness"]) * picture, 1.0)
    jitter = draws["jitter_on"] < options.jitter_probability
    if options.jitter_brightness is not None:
        factor = jnp.where(jitter, _within(options.jitter_brightness, draws["jitter_brightness"]), 1.0)
        picture = jnp.minimum(factor * picture, 1.0)
    if options.jitter_contrast is not None:
        factor = jnp.where(jitter, _within(options.jitter_contrast, draws["jitter_contrast"]), 1.0)
        picture = jnp.clip(factor * picture + (1 - factor) * _mean(picture), 0.0, 1.0)
    return picture


def _match_greys(picture: Float[Array, "size size"], draws: _Draws, options: Augmentation) -> Float[Array, "size size"]:
    if options.greys is None or options.greys_probability == 0:
        return picture
    matched = match_greys(picture, tuple(options.greys))
    return jnp.where(draws["greys_on"] < options.greys_probability, matched, picture)


def _mean(picture: Float[Array, "size size"]) -> _Scalar:
    """Return the mean grey, summed in whole numbers, so that any order of summation gives the same value."""
    for _ in range(2):
        whole = jnp.round(picture * 2**20).astype(jnp.uint32)  # 4,095 greys of 1 fit
        picture = whole.sum(-1, dtype=jnp.uint32).astype(jnp.float32) / (2**20 * picture.shape[-1])
    return picture


def _occlude(
    picture: Float[Array, "size size"], across: Float[Array, "size size"], draws: _Draws, options: Augmentation
) -> Float[Array, "size size"]:
    along = (jnp.arange(picture.shape[0]) + 0.5) / picture.shape[0]
    y, x = along[:, None], along[None, :]
    if options.shadow is not None and options.shadow_probability > 0:
        shadow = _shadow(across, draws, options.shadow)
        picture *= jnp.where(draws["shadow_on"] < options.shadow_probability, 1 - shadow, 1.0)
    if options.corners is not None and options.corner_probability > 0:
        picture = jnp.where(_in_corner(y, x, draws, options.corners, options.corner_probability), 0.0, picture)
    if options.erase is not None and options.erase_probability > 0:
        height, width = _box(_within(options.erase, draws["erase"]), _ERASE_ASPECT, draws["erase_aspect"])
        top, left = (1 - height) * draws["erase_y"], (1 - width) * draws["erase_x"]
        erased = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        picture = jnp.where(erased & (draws["erase_on"] < options.erase_probability), 0.0, picture)
    return picture


def _shadow(across: Float[Array, "size size"], draws: _Draws, widths: Range) -> Float[Array, "size size"]:
    """Return how dark each pixel is, 0 to 1; `across` is where its beam leaves the array."""
    width = _within(widths, draws["shadow"])
    middle = width / 2 + (1 - width) * draws["shadow_x"]
    fade = _SHADOW_EDGE * width
    return jnp.clip((width / 2 - jnp.abs(across - middle)) / fade + 0.5, 0.0, 1.0)


def _in_corner(
    y: Float[Array, "size 1"],
    x: Float[Array, "1 size"],
    draws: _Draws,
    edges: Range,
    probability: Number,
) -> Bool[Array, "size size"]:
    height, width = _within(edges, draws["corner_height"]), _within(edges, draws["corner_width"])
    on = [draws[f"corner_{i}_on"] < probability for i in range(4)]
    up, low, left, right = y < height, y > 1 - height, x < width, x > 1 - width
    return (up & left & on[0]) | (up & right & on[1]) | (low & left & on[2]) | (low & right & on[3])


def _normalise(picture: Float[Array, "size size"], options: Augmentation) -> Float[Array, "size size 1"]:
    return ((picture - options.mean) / options.std)[..., None]
