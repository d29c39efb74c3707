"""Where the beams run, and how their samples become the machine's picture.

x runs across and z down from the middle of the transducer's face, in millimetres. A curved array of radius R sends the
beam of angle t from (R sin t, R cos t - R), so that the sample at depth r lies at ((R + r) sin t, (R + r) cos t - R); a
linear array sends parallel beams.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from awcl_jax.ingest.phantom.outlines import COARSE

OVERSAMPLING = 2
"""Samples an output pixel, each way: speckle finer than a pixel must average out, not alias."""


@dataclasses.dataclass(frozen=True)
class Field:
    """Field of view of one depth setting.

    Attributes:
      depth_mm: depth shown.
      radius_mm: radius of the curved array, 0 for a linear one.
      spread: half the opening angle in radians, or half the width in millimetres of a linear array.
      crop: how much of the width beyond the height is cut off on the screen, 0 to 1.
      image_size: edge of the picture in pixels.
    """

    depth_mm: float
    radius_mm: float
    spread: float
    crop: float
    image_size: int

    @property
    def samples(self) -> tuple[int, int]:
        """Depth samples and beams."""
        return round(1.75 * self.image_size), self.image_size

    @property
    def step_mm(self) -> float:
        return self.depth_mm / self.samples[0]

    @property
    def beam_mm(self) -> Float[np.ndarray, " depth"]:
        """Distance of two beams at every depth."""
        depths, beams = self.samples
        arc = 2 * self.spread / (beams - 1)
        if not self.radius_mm:
            return np.full(depths, arc)
        return arc * (self.radius_mm + np.arange(depths) * self.step_mm)

    @property
    def coarse_mm(self) -> float:
        """Largest distance of samples `COARSE` apart, and of those that a bend moves by a few millimetres."""
        return COARSE * (self.step_mm + float(self.beam_mm.max())) + 4

    @property
    def _rise_mm(self) -> float:
        """How far the ends of a curved face lie above its middle."""
        return self.radius_mm * (1 - math.cos(self.spread)) if self.radius_mm else 0.0

    @property
    def side_mm(self) -> float:
        """Edge of the picture in millimetres."""
        height = self.depth_mm + self._rise_mm
        width = 2 * ((self.radius_mm + self.depth_mm) * math.sin(self.spread) if self.radius_mm else self.spread)
        return height * 1.04 + (1 - self.crop) * max(0.0, width - height)

    @property
    def pixel_mm(self) -> float:
        return self.side_mm / self.image_size

    def beam_positions(self) -> tuple[Float[np.ndarray, "depth beam"], Float[np.ndarray, "depth beam"]]:
        """Return positions x and z of every sample."""
        depths, beams = self.samples
        r = (np.arange(depths) * self.step_mm)[:, None]
        across = np.linspace(-self.spread, self.spread, beams)[None]
        if not self.radius_mm:
            return np.broadcast_to(across, (depths, beams)), np.broadcast_to(r, (depths, beams))
        return (self.radius_mm + r) * np.sin(across), (self.radius_mm + r) * np.cos(across) - self.radius_mm

    def pixel_positions(self, oversampling: int = 1) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
        """Return positions x and z of the centre of every pixel, or of `oversampling` times as many points each way."""
        n = self.image_size * oversampling
        at = (np.arange(n) + 0.5) * self.side_mm / n
        top = -self._rise_mm - 0.5 * (self.side_mm - self.depth_mm - self._rise_mm)
        x, z = np.meshgrid(at - self.side_mm / 2, at + top)
        return x, z

    def sample_at(
        self, x: Float[np.ndarray, "*shape"], z: Float[np.ndarray, "*shape"]
    ) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
        """Return depth sample and beam, both fractional, of a position; outside the field they leave the grid."""
        _, beams = self.samples
        if self.radius_mm:
            r, across = np.hypot(x, z + self.radius_mm) - self.radius_mm, np.arctan2(x, z + self.radius_mm)
        else:
            r, across = z, x
        return r / self.step_mm, (across + self.spread) * ((beams - 1) / (2 * self.spread))

    def visible(self) -> np.ndarray:
        """Return the pixels [h, w] whose centre is in the field of view."""
        return _inside(self, *self.sample_at(*self.pixel_positions()))

    def scan_convert(self, beams: Float[np.ndarray, "f depth beam"]) -> Float[np.ndarray, "f h w"]:
        """Return the picture of beam samples: bilinear between the four nearest, black outside the field of view."""
        flat = np.ascontiguousarray(beams.reshape(len(beams), -1).T)
        return (_conversion(self) @ flat).T.reshape(len(beams), self.image_size, self.image_size)


def _inside(field: Field, depth: np.ndarray, beam: np.ndarray) -> np.ndarray:
    depths, beams = field.samples
    return (depth >= 0) & (depth <= depths - 1) & (beam >= 0) & (beam <= beams - 1)


@functools.lru_cache(maxsize=64)
def _conversion(field: Field) -> Any:
    """Return scan conversion as a sparse matrix [h w, depth beam], cached: machines have few depth settings."""
    from scipy import sparse

    depths, beams = field.samples
    depth, beam = field.sample_at(*field.pixel_positions(OVERSAMPLING))
    inside = _inside(field, depth, beam)
    n = field.image_size * OVERSAMPLING
    row, column = np.divmod(np.arange(n * n).reshape(n, n)[inside], n)
    pixel = (row // OVERSAMPLING) * field.image_size + column // OVERSAMPLING
    depth, beam = depth[inside], beam[inside]
    d0, b0 = np.minimum(depth.astype(int), depths - 2), np.minimum(beam.astype(int), beams - 2)
    fd, fb = depth - d0, beam - b0
    corners = [(d0 + i) * beams + b0 + j for i in (0, 1) for j in (0, 1)]
    shares = [(fd if i else 1 - fd) * (fb if j else 1 - fb) for i in (0, 1) for j in (0, 1)]
    shape = (field.image_size**2, depths * beams)
    entries = (np.concatenate(shares) / OVERSAMPLING**2, (np.tile(pixel, 4), np.concatenate(corners)))
    return sparse.csr_matrix(entries, shape=shape)


_GLYPHS = {
    "0": "### #.# #.# #.# ###",
    "2": "### ..# ### #.. ###",
    "3": "### ..# ### ..# ###",
    "4": "#.# #.# ### ..# ..#",
    "5": "### #.. ### ..# ###",
    "7": "### ..# ..# ..# ..#",
    "B": "##. #.# ##. #.# ##.",
    "C": "### #.. #.. #.. ###",
    "D": "##. #.# #.# #.# ##.",
    "L": "#.. #.. #.. #.. ###",
    "O": "### #.# #.# #.# ###",
    "P": "### #.# ### #.. #..",
    ".": "... ... ... ... .#.",
    " ": "... ... ... ... ...",
}
"""Rows of the letters that machines write, three points wide; font renderers would differ between their versions."""


def draw_overlay(
    image: UInt8[np.ndarray, "h w"], *, text: str, corner: tuple[float, float], ticks: str, pixel_mm: float
) -> None:
    """Burn in what a machine writes on its picture: a line of text, centimetre ticks, a grey bar.

    Args:
      image: changed in place.
      text: e.g. the transducer; of the letters in the table above.
      corner: top left of the text, as shares of height and width.
      ticks: "left" or "right" edge for the centimetre ticks; "bar" for a grey bar at the left instead; "" for none.
      pixel_mm: distance of the ticks.
    """
    size = image.shape[0]
    dots = np.concatenate([_glyph(letter) for letter in text], axis=1)
    dots = np.kron(dots, np.ones((max(1, size // 96),) * 2, bool))
    top, left = round(corner[0] * size), round(corner[1] * size)
    window = image[top : top + dots.shape[0], left : left + dots.shape[1]]
    window[dots[: window.shape[0], : window.shape[1]]] = 190
    if ticks == "bar":
        image[size // 4 : size // 2, 1:3] = np.linspace(255, 0, size // 2 - size // 4).astype(np.uint8)[:, None]
    elif ticks:
        edge = slice(0, 2) if ticks == "left" else slice(size - 2, size)
        rows = np.arange(0, size * pixel_mm, 10) / pixel_mm
        image[rows.astype(int), edge] = 150


@functools.cache
def _glyph(letter: str) -> np.ndarray:
    """Return points [5, 4] of a letter, with a column of space."""
    return np.array([[point == "#" for point in row + "."] for row in _GLYPHS[letter].split(" ")])
