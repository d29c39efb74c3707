"""How to make an encoder's input from a frame, for programs without this package: `augment.centre_view` in words.

Along each axis, `halvings` times two pixels become their mean (rounded to whole grey); then a matrix of linear weights
maps `frame_size >> halvings` pixels to `input_size`.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from awcl_jax.config.export_files import FORMAT
from awcl_jax.data.square import ASPECT, LETTERBOX, SQUASH

_HOW = "by averaging the area of pixels (OpenCV's INTER_AREA), or bilinear (INTER_LINEAR) where height or width grows"
_RESIZE = {
    SQUASH: f"to a square, not keeping the aspect ratio: {_HOW}",
    LETTERBOX: "to max(1, round(height * size / longer)) x max(1, round(width * size / longer)), where longer is the "
    f"longer edge and half is rounded to even, {_HOW}; then padded with 0 to a square: (size - rows) // 2 rows above, "
    "(size - columns) // 2 columns to the left, the rest below and to the right",
}
"""Aspect -> how a frame is made square."""
_MASKING = (
    "what is outside of the sector is set to 0 by awcl_jax.data.sector.mask_overlays, before the frame is resized"
)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From a frame to the encoder's input.

    Attributes:
      frame_size: edge in pixels of the square frames, uint8 grey, that are the input of files with preprocessing.
      input_size: edge of the encoder's input.
      mean: mean of grey from 0 to 1, subtracted.
      std: standard deviation of grey, divided by.
      mask_overlays: whether pixels outside of the sector are 0.
      aspect: how frames are made square, see `data.square`.
      region: part of pictures that frames are, as `data.about.About.region`; empty if that is unknown.
    """

    frame_size: int
    input_size: int
    mean: float
    std: float
    mask_overlays: bool = False
    aspect: str = SQUASH
    region: str = ""

    @property
    def halvings(self) -> int:
        """How often the frame is halved before it is interpolated, so that the two sizes are closest."""
        possible = int(math.log2(self.frame_size))  # a single pixel is not halved
        return min(max(0, round(math.log2(self.frame_size / self.input_size))), possible)

    def weights(self) -> Float[np.ndarray, "input_size halved"]:
        """Return the linear weights of the halved frame's rows (or columns) in each of the input's; edges extend."""
        halved = self.frame_size >> self.halvings
        centres = (np.arange(self.input_size) + 0.5) / self.input_size * self.frame_size / 2**self.halvings - 0.5
        centres = np.clip(centres, 0, halved - 1)
        # A tent of width 1 about each centre: 1 - |distance| where that is positive.
        return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(halved)))

    def describe(self) -> dict[str, Any]:
        """Return the steps as plain values, in order."""
        return {
            "format": FORMAT,
            "frames": {
                "layout": "[batch, height, width], grey, uint8 from 0 to 255",
                "size": self.frame_size,
                **({"region": self.region} if self.region else {}),  # as `awcl_jax.ingest --region`, before all else
                "mask_overlays": self.mask_overlays,
                **({"masking": _MASKING} if self.mask_overlays else {}),
                ASPECT: self.aspect,
                "resize": _RESIZE[self.aspect],
            },
            "input": {
                "layout": "[batch, channel, height, width], float32",
                "size": self.input_size,
                "halvings": self.halvings,
                "resize": "halve `halvings` times (mean of 2 x 2 pixels, floor(mean + 0.5), an odd last row or column "
                "dropped); then bilinear: pixel i is at (i + 0.5) / size * frames.size / 2**halvings - 0.5, clipped to "
                "the halved frame",
                "normalise": "(grey / 255 - mean) / std",
                "mean": self.mean,
                "std": self.std,
            },
        }
