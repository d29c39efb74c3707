"""The part of a picture to keep; the rest, with burnt-in names and settings, becomes black.

- `whole`: all of it.
- `tag`: the ultrasound rectangles in the file's tags, and in each frame the sector (see `awcl_jax.data.sector`) within
  them. A rectangle without a sector is kept whole. A file without rectangles is refused.
- `sector`: for clips without rectangles. The sector is found by what moves, which burnt-in text does not, joined with
  what is brighter than the background; see `motion.py`. A sector found in a single frame is not safe, because it may
  include large writing. If nothing moves, or no sector is found, the file is refused.
- a rectangle from the user.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, UInt8

from awcl_jax.data.fan import Fan, fit_fan
from awcl_jax.data.sector import find_sector
from awcl_jax.ingest.own.items import BadFileError, Clip, Picture, Rectangle
from awcl_jax.ingest.own.motion import Motion


@dataclasses.dataclass(frozen=True)
class Kept:
    """The part of every frame of a clip to keep.

    Attributes:
      part: its pixels; None for all.
      rectangles: where the sector is searched in each frame separately.
      fans: of the clip's sector, if it was searched in the whole clip; None if it is not a fan.
    """

    part: Bool[np.ndarray, "h w"] | None
    rectangles: tuple[Rectangle, ...] = ()
    fans: tuple[Fan | None, ...] = ()


def kept_part(clip: Clip, region: str | Rectangle, size: tuple[int, int]) -> Kept:
    """Return the part of a clip to keep.

    Args:
      clip: a file.
      region: `whole`, `tag`, `sector`, or a rectangle.
      size: height and width of its pictures.

    Raises:
      BadFileError: the file has no region, no sector is found, or the rectangle is outside the picture.
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
        raise BadFileError("no_region", f"the rectangle is outside its {size[1]} x {size[0]} pixels")
    return Kept(part, rectangles if isinstance(region, str) else ())


def keep(image: UInt8[np.ndarray, "h w"], kept: Kept) -> UInt8[np.ndarray, "h w"]:
    """Return the picture, black where it is not kept.

    Raises:
      BadFileError: its size differs from the clip's first.
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
    """Find the sector of a clip by what moves in it.

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
