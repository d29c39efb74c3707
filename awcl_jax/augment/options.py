"""The augmentations and the ranges that they draw from."""

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import Any

from awcl_jax.runtime.errors import InputError

Number = int | float
Range = tuple[Number, Number] | list[Number]
"""Lowest and highest value. An `Augmentation` turns lists into tuples, and whole numbers into floats."""

RECORDED_RANGE = 60.0
"""Decibels from black to white in a recorded frame. Machines rarely store it; 60 is a common setting."""

BEAMS = ("fixed", "fan")

_LIMITS: Mapping[str, tuple[float, float]] = {
    "crop_area": (0.01, 1.0),
    "crop_aspect": (0.1, 10.0),
    "flip": (0.0, 1.0),
    "rotation": (0.0, 180.0),
    "blur": (0.1, 20.0),
    "blur_probability": (0.0, 1.0),
    "speckle": (0.0, 30.0),
    "speckle_probability": (0.0, 1.0),
    "haze": (-60.0, 0.0),
    "haze_probability": (0.0, 1.0),
    "gain": (-60.0, 60.0),
    "attenuation": (-60.0, 60.0),
    "dynamic_range": (10.0, 200.0),
    "despeckle": (0.1, 30.0),
    "despeckle_probability": (0.0, 1.0),
    "gamma": (0.1, 10.0),
    "brightness": (0.0, 10.0),
    "jitter_probability": (0.0, 1.0),
    "jitter_brightness": (0.0, 10.0),
    "jitter_contrast": (0.0, 10.0),
    "shadow": (0.01, 1.0),
    "shadow_probability": (0.0, 1.0),
    "corners": (0.01, 0.5),
    "corner_probability": (0.0, 1.0),
    "greys_probability": (0.0, 1.0),
    "erase": (0.01, 1.0),
    "erase_probability": (0.0, 1.0),
    "mean": (0.0, 1.0),
    "std": (0.001, 10.0),
}
_MOST_GREYS = 256  # quantiles of a reference
_OPTIONAL = (
    *("crop_area", "blur", "speckle", "haze", "gain", "attenuation", "dynamic_range", "despeckle", "gamma"),
    *("brightness", "jitter_brightness", "jitter_contrast", "shadow", "corners", "erase"),
)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The augmentations and their ranges. The defaults are for frames of fetal ultrasound.

    A pair is a range from which a value is drawn uniformly. None, or a probability of 0, turns an augmentation off.
    Lists become tuples, so that `Augmentation(**config)` works for a ConfigDict of these fields.

    Attributes:
      size: edge of a view in pixels.
      crop_area: share of the frame's area that a view shows, at most 1. None shows the whole frame, uncropped.
      crop_aspect: width over height of the crop, *relative to the frame's*; log-uniform among those that fit in it.
      flip: probability of a left-right flip. Use 0 if the side matters (situs).
      rotation: degrees; the angle is uniform in [-rotation, rotation], about the centre of the crop. 0 turns it off.
      blur: standard deviation of a Gaussian blur (a wider beam), in pixels of the view, with `blur_probability`.
      speckle: standard deviation in decibels of multiplicative noise with grains of about 2 pixels, with
        `speckle_probability`. Fully developed speckle has 5.6, but the frame already has speckle.
      haze: level in decibels below white, at its brightest, of an arc of haze at one depth (the reverberation of a
        strong echo above), with `haze_probability`. Its echo is added to the frame's in power.
      gain: decibels added to every echo (the machine's gain knob).
      attenuation: difference in decibels between the bottom and the top of the view, linear in depth, 0 in the middle
        (tissue that attenuates more, or another time-gain compensation).
      dynamic_range: decibels from black to white; below `RECORDED_RANGE` weak echoes become black, white stays.
      despeckle: standard deviation in decibels of the speckle that the machine's filter takes for noise and smooths,
        with `despeckle_probability`; it leaves stronger edges. About 2 smooths lightly, 6 fully.
      gamma: exponent of the grey; above 1 darkens.
      brightness: factor on the grey.
      jitter_probability: probability of the colour jitter of photographs, that is, of the next two together.
      jitter_brightness: factor on the grey.
      jitter_contrast: factor on the difference from the view's mean grey.
      shadow: share of the view's top edge that loses contact and casts a shadow along the beams to the bottom, with
        `shadow_probability`.
      corners: edges of black boxes in the corners, where machines draw overlays, as shares of the view's edge; each of
        the four with `corner_probability`, all of one size.
      erase: share of the view's area covered by one black box anywhere, with `erase_probability`.
      greys: greys of a reference machine, 0 to 1, at evenly spaced quantiles of its pixels that are not black, darkest
        first. A view's greys are mapped to them by their rank, with `greys_probability`, so what gamma and brightness
        did to it is lost.
      mean: mean grey, subtracted at the end.
      std: standard deviation of the grey, divided by at the end. The defaults are those of FETAL_PLANES_DB at 224
        pixels.
      beams: which way shadows, attenuation and haze go: `fixed` as if all frames were of one convex array (shadows fan
        out from half a height above the view, depth is along its rows), or `fan` along the beams of each frame's own
        fan, through crop, flip and rotation (a shadow is then a share of the fan's angles, and depth is the radius);
        frames whose fan is unknown, as of linear arrays, have fixed ones.
    """

    size: int = 224
    crop_area: Range | None = (0.3, 1.0)
    crop_aspect: Range = (0.75, 4 / 3)
    flip: Number = 0.5
    rotation: Number = 15.0
    blur: Range | None = (0.3, 1.2)
    blur_probability: Number = 0.5
    speckle: Range | None = (0.5, 3.0)
    speckle_probability: Number = 0.5
    haze: Range | None = None
    haze_probability: Number = 0.0
    gain: Range | None = (-3.0, 6.0)
    attenuation: Range | None = (-6.0, 6.0)
    dynamic_range: Range | None = (57.0, 68.0)
    despeckle: Range | None = None
    despeckle_probability: Number = 0.0
    gamma: Range | None = (0.8, 1.25)
    brightness: Range | None = None
    jitter_probability: Number = 0.0
    jitter_brightness: Range | None = None
    jitter_contrast: Range | None = None
    shadow: Range | None = (0.05, 0.2)
    shadow_probability: Number = 0.2
    corners: Range | None = (0.05, 0.15)
    corner_probability: Number = 0.1
    erase: Range | None = None
    erase_probability: Number = 0.0
    greys: tuple[Number, ...] | list[Number] | None = None
    greys_probability: Number = 0.0
    mean: Number = 0.17
    std: Number = 0.18
    beams: str = "fixed"

    def __post_init__(self) -> None:
        if self.beams not in BEAMS:
            raise InputError(f"beams of an augmentation must be {' or '.join(BEAMS)}; got {self.beams!r}.")
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise InputError(
                f"size of an augmentation must be a whole number of pixels, at least 1; got {self.size!r}."
            )
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            check = _checked_range if name in (*_OPTIONAL, "crop_aspect") else _checked
            object.__setattr__(self, name, check(name, value, low, high))
        if self.greys is not None:
            object.__setattr__(self, "greys", _checked_greys(self.greys))

    @classmethod
    def off(cls, *, size: int, mean: float = 0.17, std: float = 0.18) -> "Augmentation":
        """Turn all augmentations off: a start for `dataclasses.replace` when you want only a few."""
        off: dict[str, Any] = dict.fromkeys(_OPTIONAL)
        return cls(size=size, flip=0.0, rotation=0.0, mean=mean, std=std, **off)


def _checked(name: str, value: object, low: float, high: float) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name} of an augmentation must be a number from {low:g} to {high:g}; got {value!r}.")
    return float(value)


def _checked_greys(value: object) -> tuple[float, ...]:
    try:
        greys = tuple(_checked("greys", grey, 0.0, 1.0) for grey in value) if isinstance(value, (tuple, list)) else ()
    except InputError:
        greys = ()
    if not 2 <= len(greys) <= _MOST_GREYS or list(greys) != sorted(greys):
        raise InputError(
            f"greys of an augmentation must be 2 to {_MOST_GREYS} numbers from 0 to 1, ascending; got "
            f"{reprlib.repr(value)}; None turns it off."
        )
    return greys


def _checked_range(name: str, value: object, low: float, high: float) -> tuple[float, float]:
    rule = f"{name} of an augmentation must be a range (lowest, highest) within {low:g} to {high:g}"
    off = "" if name == "crop_aspect" else "; None turns it off"
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(f"{rule}; got {value!r}{off}.")
    try:
        least, greatest = (_checked(name, end, low, high) for end in value)
    except InputError:
        raise InputError(f"{rule}; got {value!r}{off}.") from None
    if least > greatest:
        raise InputError(f"{rule}; got {value!r}, which is in the wrong order. Swap the two.")
    return least, greatest


PAPER = dataclasses.replace(
    Augmentation.off(size=227, mean=0.449, std=0.226),
    crop_area=(0.08, 1.0),
    crop_aspect=(3 / 4, 4 / 3),
    flip=0.5,
    gamma=(0.75, 1.25),
    brightness=(0.75, 1.25),
    jitter_probability=0.8,
    jitter_brightness=(0.6, 1.4),
    jitter_contrast=(0.6, 1.4),
)
"""The augmentations of the published AWCL code, for grey frames.

Saturation, hue and random greying of its colour jitter do not change a grey frame and are left out. Three
differences: gamma and brightness apply to all frames (there to labelled ones only); contrast always follows brightness
(there in random order); mean and deviation are the averages over ImageNet's three channels, because a frame has one.
"""
