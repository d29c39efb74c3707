"""Image files and masks, read with `awcl_jax.data.images`, and with a window if they have more than 8 bits."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped, UInt8

from awcl_jax.data import images
from awcl_jax.ingest.own.items import WHY, BadFileError, Clip, Picture, Reading
from awcl_jax.ingest.own.paths import opened


def open_image(path: Path, reading: Reading) -> Clip:
    """Open an image file; see `read_image`."""
    return Clip(frames=lambda: iter((read_image(path, reading),)))


def read_image(path: Path, reading: Reading) -> Picture:
    """Read an image file.

    Besides its pixels, only its orientation is read, no other EXIF and no text.

    Raises:
      BadFileError: it is not an image, contains several, is truncated or damaged, too large, or has more than 8 bits
        without a window.
    """
    with _opened(path) as file:
        grey = images.read_grey(file, max_pixels=reading.max_pixels)
    if not grey.deep:
        return Picture(grey.values, grey.colour)
    if reading.window is None:
        raise BadFileError("bit_depth")
    return Picture(apply_window(grey.values, reading.window), grey.colour)


def read_mask(path: Path, reading: Reading, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Read a mask whose values, or palette indices, are classes; with two classes, 0 and 255 mean 0 and 1.

    Args:
      path: of the mask.
      reading: names the classes.
      size: height and width of its picture.

    Raises:
      BadFileError: it cannot be read, has another size, is in colour, or has values without a name.
    """
    try:
        with _opened(path) as file:
            mask, palette, mode = images.read_classes(file, max_pixels=reading.max_pixels)
    except BadFileError as error:
        raise BadFileError("bad_mask", WHY[error.kind]) from error
    if mask is None:
        raise BadFileError("bad_mask", f"its pixels must be single 8-bit values; got {mode}")
    if mask.shape != size:
        raise BadFileError(
            "bad_mask", f"it has {mask.shape[1]} x {mask.shape[0]} pixels, its picture {size[1]} x {size[0]}"
        )
    names = len(reading.mask_names)
    if names == 2 and palette is None and not set(np.unique(mask).tolist()) - {0, 255}:
        mask = np.minimum(mask, 1)
    if names == 2 and palette is not None and _is_inverted(palette):
        raise BadFileError(
            "bad_mask", "its palette shows 0 as white and 1 as black, which is ambiguous; store grey values"
        )
    if mask.max() >= names:
        raise BadFileError("bad_mask", f"it has the value {mask.max()}, but --mask_names names {names}")
    return mask


def apply_window(values: Shaped[np.ndarray, "h w"], window: tuple[float, float]) -> UInt8[np.ndarray, "h w"]:
    """Return grey values of 8 bits: 255 (v - low) / (high - low), rounded, and clipped to 0 and 255."""
    low, high = window
    return np.rint(np.clip(255 * (values.astype(np.float64) - low) / (high - low), 0, 255)).astype(np.uint8)


def _is_inverted(palette: UInt8[np.ndarray, "colours 3"]) -> bool:
    """Return whether the first two colours are white and black, the opposite of their indices."""
    return palette[:2].tolist() == [[255] * 3, [0] * 3]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with opened(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large pictures, whose size is checked, and odd metadata
        try:
            yield file
        except images.BadImageError as error:
            raise BadFileError(error.kind) from error
