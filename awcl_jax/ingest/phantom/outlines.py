"""Outlines of anatomy as signed distances, and the medium they are painted into.

Every shape is a function of the position (u, v) in millimetres that is negative inside. Only + - * / and square roots
are used, which IEEE arithmetic rounds in one way: float32 is therefore enough here and equal on every machine.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Point = tuple[float, float]
Distance = Float[np.ndarray, "*shape"]

EDGE_MM = 1.1
"""Width over which one tissue gives way to the next: the thickness of the slice blurs every edge."""


@dataclasses.dataclass(frozen=True)
class Ellipse:
    """An ellipse.

    Attributes:
      centre: in millimetres, as all lengths here.
      semi_axes: a along `turn` and b across it.
      turn: direction of the first axis, of any length.
    """

    centre: Point
    semi_axes: Point
    turn: Point = (1.0, 0.0)

    @property
    def bounds(self) -> tuple[Point, float]:
        """Centre and radius of a circle about it."""
        return self.centre, max(self.semi_axes)

    def distance(self, u: Distance, v: Distance) -> Distance:
        """Return, to first order, (f - 1) / |grad f| with f = |(p / a, q / b)| for p along the first axis, q across."""
        length = math.hypot(*self.turn)
        c, s = self.turn[0] / length, self.turn[1] / length
        du, dv = u - float(self.centre[0]), v - float(self.centre[1])
        a, b = float(self.semi_axes[0]), float(self.semi_axes[1])
        p, q = (c * du + s * dv) / a, (c * dv - s * du) / b
        f = np.sqrt(p * p + q * q)
        return (f - 1) * f / np.maximum(np.sqrt((p / a) ** 2 + (q / b) ** 2), 1e-6)


@dataclasses.dataclass(frozen=True)
class Rod:
    """A bent rod with round ends through `points`; a single point makes a disc."""

    points: Sequence[Point]
    radius: float

    @property
    def bounds(self) -> tuple[Point, float]:
        """Centre and radius of a circle about it."""
        return _circle(self.points, self.radius)

    def distance(self, u: Distance, v: Distance) -> Distance:
        """Return the least distance to its straight pieces."""
        ends = [*self.points[1:], self.points[-1]] if len(self.points) == 1 else self.points[1:]
        pieces = [_segment(u, v, a, b) for a, b in zip(self.points, ends, strict=False)]
        return np.sqrt(functools.reduce(np.minimum, pieces)) - float(self.radius)


@dataclasses.dataclass(frozen=True)
class Polygon:
    """A closed polygon."""

    points: Sequence[Point]

    @property
    def bounds(self) -> tuple[Point, float]:
        """Centre and radius of a circle about it."""
        return _circle(self.points, 0.0)

    def distance(self, u: Distance, v: Distance) -> Distance:
        """Return the distance to the nearest edge, negative inside (even-odd rule)."""
        closed = [*self.points, self.points[0]]
        inside = np.zeros(u.shape, bool)
        for (au, av), (bu, bv) in itertools.pairwise(closed):
            if av != bv:
                inside ^= ((av > v) != (bv > v)) & (u < float((bu - au) / (bv - av)) * (v - float(av)) + float(au))
        distance = Rod(closed, 0.0).distance(u, v)
        return np.where(inside, -distance, distance)


@dataclasses.dataclass(frozen=True)
class Bullet:
    """Half an ellipse and the start of another, cut off straight: a chamber of the heart.

    It is widest a quarter of the way from the middle of its straight base to its tip, where the two ellipses meet; the
    one towards the base has a semi-axis of 0.6 of the length, of which the base cuts off the rest.

    Attributes:
      base: middle of the straight end.
      tip: the round end.
      half_width: the greatest.
    """

    base: Point
    tip: Point
    half_width: float

    @property
    def length(self) -> float:
        return math.hypot(self.tip[0] - self.base[0], self.tip[1] - self.base[1])

    @property
    def bounds(self) -> tuple[Point, float]:
        """Centre and radius of a circle about it."""
        centre = ((self.base[0] + self.tip[0]) / 2, (self.base[1] + self.tip[1]) / 2)
        return centre, math.hypot(self.length / 2, self.half_width)

    def distance(self, u: Distance, v: Distance) -> Distance:
        """Return the greater distance, to the straight base or, to first order as for `Ellipse`, to the ellipses."""
        length, b = self.length, float(self.half_width)
        c, s = (self.tip[0] - self.base[0]) / length, (self.tip[1] - self.base[1]) / length
        du, dv = u - float(self.base[0]), v - float(self.base[1])
        along, across = c * du + s * dv, (c * dv - s * du) / b
        beyond = along - 0.25 * length
        a = np.where(beyond > 0, u.dtype.type(0.75 * length), u.dtype.type(0.6 * length))
        p = beyond / a
        f = np.sqrt(p * p + across * across)
        round_end = (f - 1) * f / np.maximum(np.sqrt((p / a) ** 2 + (across / b) ** 2), 1e-6)
        return np.maximum(round_end, -along)

    def widened(self, by: float) -> "Bullet":
        """Return the same, larger by a margin on every side."""
        share = by / self.length
        du, dv = share * (self.tip[0] - self.base[0]), share * (self.tip[1] - self.base[1])
        base, tip = (self.base[0] - du, self.base[1] - dv), (self.tip[0] + du, self.tip[1] + dv)
        return Bullet(base, tip, self.half_width + by)


Outline = Ellipse | Rod | Polygon | Bullet


def _segment(u: Distance, v: Distance, start: Point, end: Point) -> Distance:
    """Return the squared distance to a straight segment."""
    au, av = float(start[0]), float(start[1])
    du, dv = float(end[0]) - au, float(end[1]) - av
    pu, pv = u - au, v - av
    length2 = du * du + dv * dv
    if length2 == 0:
        return pu * pu + pv * pv
    along = np.clip((pu * du + pv * dv) / length2, 0, 1)
    return (pu - along * du) ** 2 + (pv - along * dv) ** 2


def _circle(points: Sequence[Point], margin: float) -> tuple[Point, float]:
    corners = np.array(points, float)
    centre = (corners.min(0) + corners.max(0)) / 2
    return (float(centre[0]), float(centre[1])), float(np.hypot(*(corners - centre).T).max()) + margin


@dataclasses.dataclass(frozen=True)
class Tissue:
    """How a tissue answers the beam.

    Attributes:
      echo_db: strength of its scatterers, 0 for soft tissue.
      attenuation: dB/cm/MHz, one way. Soft tissue 0.5, fluid next to none, bone 10 and more (Szabo, Diagnostic
        Ultrasound Imaging, App. B).
      wall: amplitude of the mirror echo of its surface where the beam meets it at a right angle.
      wall_mm: half the thickness of that echo.
      uneven: how much of the medium's texture it has; 0 is even.
    """

    echo_db: float
    attenuation: float = 0.5
    wall: float = 0.0
    wall_mm: float = 1.2
    uneven: float = 1.0

    @property
    def amplitude(self) -> float:
        return float(10 ** (self.echo_db / 20))


@dataclasses.dataclass(frozen=True)
class Medium:
    """What the beams meet in some frames: arrays [f, depth, beam] that painting changes in place.

    Attributes:
      step_mm: distance of two depth samples.
      amplitude: scatterer strength.
      attenuation: dB/cm/MHz, one way.
      mirror: amplitude of mirror echoes.
      texture: factor of scatterer strength by which tissue varies, about 1.
    """

    step_mm: float
    amplitude: Float[np.ndarray, "f depth beam"]
    attenuation: Float[np.ndarray, "f depth beam"]
    mirror: Float[np.ndarray, "f depth beam"]
    texture: Float[np.ndarray, "f depth beam"]

    def paint(
        self,
        distance: Float[np.ndarray, "f rows columns"],
        tissue: Tissue,
        *,
        weight: Float[np.ndarray, "f 1 1"] | float = 1.0,
        window: tuple[slice, slice] = (slice(None), slice(None)),
    ) -> None:
        """Fill the inside of an outline.

        The surface mirrors into a lobe: by the fourth power of the cosine between its normal and the beam, half at 33
        degrees. The normal is the gradient of a distance, and the beam runs along the depth axis: the cosine is the
        difference of neighbours in depth.

        Args:
          distance: signed distance to the outline, in millimetres, of the samples in the window.
          tissue: what fills it.
          weight: share of the slice that the shape fills, 1 where the plane is met.
          window: depth samples and beams outside of which nothing changes.
        """
        at = (slice(None), *window)
        inside = np.clip(0.5 - distance / EDGE_MM, 0, 1) * weight
        texture = self.texture[at]
        strength = tissue.amplitude * np.maximum(1 + tissue.uneven * (texture - 1), 0.05)
        self.amplitude[at] += inside * (strength - self.amplitude[at])
        self.attenuation[at] += inside * (tissue.attenuation - self.attenuation[at])
        self.mirror[at] *= 1 - inside
        if tissue.wall:
            cosine = np.empty_like(distance)
            cosine[:, 1:] = np.diff(distance, axis=1) / self.step_mm
            cosine[:, :1] = cosine[:, 1:2]
            near = np.clip(1 - (distance / tissue.wall_mm) ** 2, 0, 1)
            square = np.minimum(cosine * cosine, 1)
            self.mirror[at] += near * (square * square) * texture * (tissue.wall * weight)


COARSE = 8
"""Samples skipped each way when looking for the part of the field that an outline touches."""


def window(u: Distance, v: Distance, outline: Outline, *, margin_mm: float) -> tuple[slice, slice]:
    """Return depth samples and beams that may touch an outline in some frame, found on a coarse grid.

    Args:
      u: position at every eighth (`COARSE`) sample each way.
      v: position at the same samples.
      outline: looked for.
      margin_mm: how far it works beyond its edge, plus the distance of two coarse samples.
    """
    (cu, cv), radius = outline.bounds
    du, dv = u - cu, v - cv
    _, rows, columns = np.nonzero(du * du + dv * dv < (radius + margin_mm) ** 2)
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    return (
        slice(max(0, COARSE * (int(rows.min()) - 1)), COARSE * (int(rows.max()) + 2)),
        slice(max(0, COARSE * (int(columns.min()) - 1)), COARSE * (int(columns.max()) + 2)),
    )
