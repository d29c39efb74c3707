"""Image files and masks, read as `awcl_jax.data.images` does, and with a window where they are deeper."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from awcl_jax.data.images import DEEP_MODES, GREY_MODES, BadImageError, decoded, to_grey
from awcl_jax.ingest.own.grey import apply_window
from awcl_jax.ingest.own.items import WHY, BadFileError, Clip, Picture, Reading
from awcl_jax.ingest.own.paths import opened


def open_image(path: Path, reading: Reading) -> Clip:
    """Open an image file; see `read_image`."""
    return Clip(frames=lambda: iter((read_image(path, reading),)))


def read_image(path: Path, reading: Reading) -> Picture:
    """Read an image file.

    What it holds beside its pixels (EXIF, text) is not read.

    Raises:
      BadFileError: it is no image, holds several, is cut short or damaged, too large, or of more than 8 bits without a
        window.
    """
    with _decoded(path, reading.max_pixels) as image:
        if image.mode in DEEP_MODES:
            if reading.window is None:
                raise BadFileError("bit_depth")
            return Picture(apply_window(np.asarray(image), reading.window))
        if image.mode in GREY_MODES:
            return Picture(to_grey(image))
        channels = np.asarray(image.convert("RGB"))
        return Picture(to_grey(image), bool((channels != channels[..., :1]).any()))


def read_mask(path: Path, reading: Reading, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Read a mask whose values, or palette indices, are classes.

    Args:
      path: of the mask.
      reading: names the classes.
      size: height and width of its picture.

    Raises:
      BadFileError: it cannot be read, is of another size, in colour, or has values without a name.
    """
    try:
        with _decoded(path, reading.max_pixels) as image:
            mode, mask = image.mode, np.asarray(image)
    except BadFileError as error:
        raise BadFileError("bad_mask", WHY[error.kind]) from error
    if mode not in ("1", "L", "P"):
        raise BadFileError("bad_mask", f"its pixels are {mode}, not single values of 8 bits")
    if mask.shape != size:
        raise BadFileError(
            "bad_mask", f"it is {mask.shape[1]} x {mask.shape[0]} pixels, its picture {size[1]} x {size[0]}"
        )
    if mask.max() >= len(reading.mask_names):
        raise BadFileError("bad_mask", f"it has the value {mask.max()}; --mask_names names {len(reading.mask_names)}")
    return mask.astype(np.uint8)


@contextlib.contextmanager
def _decoded(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    with opened(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on large pictures, which are counted, and on odd metadata
        try:
            with decoded(file, max_pixels=max_pixels) as image:
                yield image
        except BadImageError as error:
            raise BadFileError(error.kind) from error
