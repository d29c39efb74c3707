"""Frames and masks made square, by the aspect that a dataset records.

- `squash`: height and width are resized separately; the aspect ratio is lost.
- `letterbox`: both are resized by one factor, so that the longer edge fills the square; what is left, half of it on
  either side, is black (0), and in masks class 0.

A dataset records its aspect when it is prepared: by default, `letterbox` for your own scans. One that records none, as
public datasets and those of earlier versions, is squashed. A run records the aspect of its labelled dataset, and its
encoder uses it for all frames, wherever they come from.
"""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from awcl_jax.data import sector
from awcl_jax.data.about import read_metadata
from awcl_jax.data.nearest import resize_nearest
from awcl_jax.runtime.errors import InputError

ASPECT = "aspect"
"""Key of a dataset's metadata, and of what a run and an export record."""

LETTERBOX, SQUASH = "letterbox", "squash"
ASPECTS = (LETTERBOX, SQUASH)


@dataclasses.dataclass(frozen=True)
class Square:
    """How an encoder gets its frames.

    Attributes:
      size: edge of the square in pixels.
      aspect: of `ASPECTS`.
      mask_overlays: whether pixels outside of the sector are set to 0.
    """

    size: int
    aspect: str = SQUASH
    mask_overlays: bool = False

    def of(self, frame: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "size size"]:
        """Return a grey frame of any size as the encoder gets it."""
        return resize_frame(frame, self.size, aspect=self.aspect, mask_overlays=self.mask_overlays)


def require_aspect(value: object, where: object) -> str:
    """Return an aspect that a file records; `squash` where it records none (None).

    Raises:
      InputError: it is not one of `ASPECTS`; `where` names the file.
    """
    if value is None:
        return SQUASH
    if not isinstance(value, str) or value not in ASPECTS:
        raise InputError(f"The aspect in {where} must be {' or '.join(ASPECTS)}; got {value!r}.")
    return value


def aspect_of(dataset: Path) -> str:
    """Return the aspect of a prepared dataset.

    Args:
      dataset: TFDS's version folder, `ScanIndex.path`.

    Raises:
      InputError: its metadata is not JSON, or names an unknown aspect.
    """
    return require_aspect(read_metadata(dataset).get(ASPECT), dataset / "metadata.json")


def fitted(shape: tuple[int, int], size: int, aspect: str) -> tuple[int, int]:
    """Return height and width that a frame of this shape has in a square of this edge, without the bars."""
    if aspect == SQUASH:
        return size, size
    longer = max(shape)
    return max(1, round(shape[0] * size / longer)), max(1, round(shape[1] * size / longer))


def resize_frame(
    frame: UInt8[np.ndarray, "h w"], size: int, *, aspect: str = SQUASH, mask_overlays: bool = False
) -> UInt8[np.ndarray, "size size"]:
    """Make a grey frame a square of this edge, averaging where it shrinks.

    With `mask_overlays`, pixels outside of its sector are set to 0 first.
    """
    if mask_overlays:
        frame = sector.mask_overlays(frame)
    if frame.shape == (size, size):
        return frame
    height, width = fitted(frame.shape, size, aspect)
    shrinks = height <= frame.shape[0] and width <= frame.shape[1]
    return _centred(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))


def resize_mask(mask: UInt8[np.ndarray, "h w"], size: int, *, aspect: str = SQUASH) -> UInt8[np.ndarray, "size size"]:
    """Make a mask a square of this edge, as its frame; a pixel takes the class of the nearest one."""
    height, width = fitted(mask.shape, size, aspect)
    return _centred(resize_nearest(mask, (height, width)))


def _centred(picture: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "size size"]:
    """Return a picture in the middle of a square of 0; of an odd number of rows or columns, one more is after it."""
    height, width = picture.shape
    if height == width:
        return picture
    size = max(height, width)
    top, left = (size - height) // 2, (size - width) // 2
    return np.pad(picture, ((top, size - height - top), (left, size - width - left)))
