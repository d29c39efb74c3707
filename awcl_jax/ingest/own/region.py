"""The part of a picture to keep; the rest, with burnt-in names and settings, becomes black.

- `whole`: all of it.
- `tag`: the ultrasound rectangles in the file's tags, and in each frame the sector (see `awcl_jax.data.sector`) within
  them. A rectangle without a sector is kept whole. A file without rectangles is refused.
- `sector`: for clips without rectangles. The sector is found by what moves, which burnt-in text does not, joined with
  what is brighter than the background; see `motion.py`. If nothing moves, or no sector is found, the file is refused.
- `frame`: the sector found in each frame alone. It is less safe than the others, because it may include large writing.
  A file is refused if none is found in its first frame.
- a rectangle from the user.

Several of these, such as `tag,sector,frame`, are tried in order for each file.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, UInt8

from awcl_jax.data.fan import Fan, fit_fan
from awcl_jax.data.sector import find_sector
from awcl_jax.ingest.own.items import BadFileError, Clip, Picture, Rectangle
from awcl_jax.ingest.own.motion import Motion

STEPS = ("tag", "sector", "frame", "whole")
NO_PART = ("no_region", "no_motion", "no_sector")
"""Kinds of faults after which the next region is tried."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """The part of every frame of a clip to keep.

    Attributes:
      part: its pixels; None for all.
      rectangles: where the sector is searched in each frame separately.
      fans: of the clip's sector, if it was searched in the whole clip; None if it is not a fan.
      step: which of the regions it is by.
      falls: the steps before it: region, the one tried next, kind of the fault (see `items.WHY`) and its detail.
    """

    part: Bool[np.ndarray, "h w"] | None
    rectangles: tuple[Rectangle, ...] = ()
    fans: tuple[Fan | None, ...] = ()
    step: str = ""
    falls: tuple[tuple[str, str, str, str], ...] = ()


def steps_of(region: str | Rectangle) -> tuple[str | Rectangle, ...]:
    """Return the regions that are tried in order: names, and at most one rectangle, which is the last."""
    if not isinstance(region, str):
        return (region,)
    parts = region.split(",")
    names = [part for part in parts if part in STEPS]
    numbers = tuple(int(part) for part in parts[len(names) :])
    return (*names, numbers) if len(numbers) == 4 else tuple(names)


def kept_part(clip: Clip, region: str | Rectangle, size: tuple[int, int]) -> Kept:
    """Return the part of a clip to keep.

    Args:
      clip: a file.
      region: `whole`, `tag`, `sector`, `frame`, a rectangle, or several of these, separated by commas.
      size: height and width of its pictures.

    Raises:
      BadFileError: the file has no region, no sector is found, or the rectangle is outside the picture.
    """
    steps = steps_of(region)
    names = [step if isinstance(step, str) else "rectangle" for step in steps]
    falls: list[tuple[str, str, str, str]] = []
    for step, name, after in zip(steps, names, [*names[1:], ""], strict=True):
        try:
            return dataclasses.replace(_kept_by(step, clip, size), step=name, falls=tuple(falls))
        except BadFileError as error:
            if not after or error.kind not in NO_PART:
                raise
            falls.append((name, after, error.kind, error.detail))
    raise AssertionError("the last step returns or raises")


def _kept_by(step: str | Rectangle, clip: Clip, size: tuple[int, int]) -> Kept:
    height, width = size
    if step == "whole":
        return Kept(None)
    if step == "frame":
        first = next(iter(clip.frames())).image
        if find_sector(first).all():
            raise BadFileError("no_sector")
        return Kept(np.ones(size, bool), ((0, 0, width, height),))
    if step == "tag" and not clip.region:
        raise BadFileError("no_region", clip.region_fault)
    if step == "sector" and not clip.region:
        sector = moving_sector(clip.frames(), size)
        return Kept(sector, fans=(fit_fan(sector),))
    rectangles = clip.region if isinstance(step, str) else (step,)
    part = np.zeros(size, bool)
    for x0, y0, x1, y1 in rectangles:
        part[y0:y1, x0:x1] = True
    if not part.any():
        raise BadFileError("no_region", f"the rectangle is outside its {width} x {height} pixels")
    return Kept(part, rectangles if isinstance(step, str) else ())


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
