"""How tissue varies from place to place: its echo, and the course of its boundaries.

    field(u, v)  = sum_k a_k g_k(u, v)              g_k smooth, Gaussian, of variance 1, w_k wide at half maximum
    echo         = 10^(field / 20)                  a_k in dB: lobules, vessels and fibres too small to be drawn
    boundary     = distance + field                 a_k in mm: no organ is an ellipse

White noise blurred by a Gaussian kernel has a Gaussian autocorrelation, sqrt(2) times as wide as the kernel.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from awcl_jax.ingest.phantom.acoustics import gaussian_kernel

Parts = tuple[tuple[float, float, float], ...]
"""Of a field: strength, and widths at half maximum along u and v in millimetres."""

ORGANS: Parts = ((4.0, 20.0, 20.0), (2.5, 6.0, 6.0))
"""Unevenness of the fetus in dB."""

LAYERS: Parts = ((5.0, 35.0, 12.0), (4.5, 12.0, 2.5))
"""Unevenness of the mother in dB: her layers run along the skin."""

COURSE: Parts = ((0.35, 9.0, 9.0), (0.1, 3.0, 3.0))
"""Unevenness of boundaries in mm, a third of one: less than a pixel, so that masks stay those of the outlines."""

WAVES: Parts = ((1.6, 30.0, 30.0), (0.4, 7.0, 7.0))
"""Unevenness of the boundaries about the fetus in mm."""

STEP_MM = 1.0
"""Of the grid that a field is drawn on; between, it is interpolated linearly."""


@dataclasses.dataclass(frozen=True)
class Surface:
    """A random field over a square about the origin, which repeats beyond.

    Attributes:
      values: on the grid, rows along v.
    """

    values: Float[np.ndarray, "n n"]

    @classmethod
    def draw(cls, rng: np.random.Generator, parts: Parts, *, edge_mm: float) -> "Surface":
        """Draw a field over a square of this edge."""
        from scipy.ndimage import convolve1d

        n = max(8, math.ceil(edge_mm / STEP_MM))
        total = np.zeros((n, n))
        for strength, wide_u, wide_v in parts:
            part = rng.standard_normal((n, n))
            for axis, wide in ((0, wide_v), (1, wide_u)):
                part = convolve1d(part, gaussian_kernel(wide / math.sqrt(2) / STEP_MM), axis=axis, mode="wrap")
            total += strength * part
        return cls(total)

    def at(self, u: Float[np.ndarray, "*shape"], v: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Return the field at positions in millimetres."""
        from scipy.ndimage import map_coordinates

        middle = (len(self.values) - 1) / 2
        places = [at / STEP_MM + middle for at in (v, u)]
        return map_coordinates(self.values.astype(np.float32), places, order=1, mode="grid-wrap", prefilter=False)


def factor(surface_db: Surface) -> Surface:
    """Return a field in dB as a factor of amplitude."""
    return Surface(np.exp(surface_db.values * (math.log(10) / 20)))
