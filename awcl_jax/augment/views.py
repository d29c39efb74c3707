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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from awcl_jax.augment.draws import DRAWS, draw_all, keys_of, view_keys
from awcl_jax.augment.options import Augmentation
from awcl_jax.augment.placement import place, positions
from awcl_jax.augment.stages import (
    beams_of,
    blur,
    blur_reach,
    despeckle,
    echoes,
    grey_map,
    haze,
    matched_greys,
    occlude,
)
from awcl_jax.runtime.errors import InputError


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
    return jax.vmap(make)(images, keys_of(seed, step, rows, view), fans)


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
        y, x, inside, _ = positions(mask.shape, draw_all(key), options, margin=0)
        row, column = (jnp.clip(at.astype(jnp.int32), 0, edge - 1) for at, edge in zip((y, x), mask.shape, strict=True))
        return jnp.where(inside, mask[row, column], jnp.uint8(0))

    return views, jax.vmap(place)(masks, keys_of(seed, step, rows, 0))


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
    unread = {name: jnp.zeros(()) for name in DRAWS}
    return jax.vmap(lambda image: _normalise(place(image, unread, still, margin=0), still))(images)


def _check_frames(images: Array, *, dims: tuple[int, ...]) -> None:
    if images.dtype != jnp.uint8:
        raise InputError(f"Frames to augment must be uint8, 0 to 255; got {images.dtype}. Convert them first.")
    if images.ndim not in dims or (images.ndim == 4 and images.shape[1] != 2):
        raise InputError(f"Frames to augment must be [b, h, w]{' or [b, 2, h, w]' * (4 in dims)}; got {images.shape}.")


def _check_fans(fans: Array | None, options: Augmentation) -> None:
    if options.beams == "fan" and fans is None:
        raise InputError('beams="fan" of an augmentation needs the fans of the frames (fans=). Pass FrameReader.fans.')


def _view(
    image: UInt8[Array, "h w"], key: Key[Array, ""], fan: Float[Array, "6"] | None, options: Augmentation
) -> Float[Array, "size size 1"]:
    draws = draw_all(key)
    picture = place(image, draws, options, margin=blur_reach(options))
    picture = blur(picture, draws, options)
    through = beams_of(image.shape, draws, options, fan)
    picture = haze(picture, through.depth, draws, options)
    picture = echoes(picture, through.depth, draws, key, options)
    picture = despeckle(picture, draws, options)
    picture = grey_map(picture, draws, options)
    picture = matched_greys(picture, draws, options)
    picture = occlude(picture, through.across, draws, options)
    return _normalise(picture, options)


def _normalise(picture: Float[Array, "size size"], options: Augmentation) -> Float[Array, "size size 1"]:
    return ((picture - options.mean) / options.std)[..., None]
