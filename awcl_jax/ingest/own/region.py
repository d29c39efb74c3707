"""Which part of a picture is kept; all else, where names and settings are burnt in, becomes black.

- `whole`: all of it.
- `tag`: the rectangles of ultrasound that the file names, and in each frame the sector (see `awcl_jax.data.sector`)
  within them. A rectangle in which no sector is found is kept whole. A file that names none is refused.
- `sector`: for clips that name none. The sector is looked for in what moves, which burnt-in text does not, and joined
  with what is brighter than the background; see `motion.py`. A sector found in one frame alone is no safe place to
  keep, for writing that is large takes part in it. Where nothing moves, or no sector is found, the file is refused.
- a rectangle of the user's.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, UInt8

from awcl_jax.data.fan import Fan, fit_fan
from awcl_jax.data.sector import find_sector
from awcl_jax.ingest.own.items import BadFileError, Clip, Picture
from awcl_jax.ingest.own.motion import Motion

Rectangle = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, the last column and row outside."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is kept of every frame of a clip.

    Attributes:
      part: its pixels; None for all.
      rectangles: in which the sector is looked for in each frame by itself.
      fans: of the clip's sector, where that was looked for in the whole clip; None where it is no fan.
    """

    part: Bool[np.ndarray, "h w"] | None
    rectangles: tuple[Rectangle, ...] = ()
    fans: tuple[Fan | None, ...] = ()


def kept_part(clip: Clip, region: str | Rectangle, size: tuple[int, int]) -> Kept:
    """What of a clip is kept.

    Args:
      clip: a file.
      region: `whole`, `tag`, `sector`, or a rectangle.
      size: height and width of its pictures.

    Raises:
      BadFileError: the file names no region, no sector is found, or the rectangle lies outside of the picture.
    """
    if region == "whole":
        return Kept(None)
    if region == "tag" and not clip.region:
        raise BadFileError("no_region", clip.region_fault)
    if region == "sector" and not clip.region:
        sector = moving_sector(clip.frames(), size)
        return Kept(sector, fans=(fit_fan(sector),))
    rectangles = clip.region if isinstance(region, str) else (region,)
    part = np.zeros(size, bool)
    for x0, y0, x1, y1 in rectangles:
        part[y0:y1, x0:x1] = True
    if not part.any():
        raise BadFileError("no_region", f"the rectangle lies outside of its {size[1]} x {size[0]} pixels")
    return Kept(part, rectangles if isinstance(region, str) else ())


def keep(image: UInt8[np.ndarray, "h w"], kept: Kept) -> UInt8[np.ndarray, "h w"]:
    """The picture, black where it is not kept.

    Raises:
      BadFileError: it is of another size than the clip's first.
    """
    if kept.part is None:
        return image
    if image.shape != kept.part.shape:
        raise BadFileError("cut_short", "its frames differ in size")
    part = np.zeros_like(kept.part) if kept.rectangles else kept.part
    for x0, y0, x1, y1 in kept.rectangles:
        if (inside := image[y0:y1, x0:x1]).size:
            part[y0:y1, x0:x1] |= find_sector(inside)
    return np.where(part, image, np.uint8(0))


def moving_sector(frames: Iterable[Picture], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The sector of a clip, from what moves in it.

    Raises:
      BadFileError: nothing moves, or no sector is found in what does.
    """
    motion = Motion()
    for frame in frames:
        if frame.image.shape != size:
            raise BadFileError("cut_short", "its frames differ in size")
        motion.add(frame.image)
    if (sector := motion.sector()) is None:
        raise BadFileError("no_motion")
    return sector
