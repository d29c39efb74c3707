"""The fourteen planes as a sonographer draws them: which outlines, in which order, of which tissue.

Each plane is drawn in its own coordinates, in millimetres about its centre: u to the right, v away from the transducer
when the fetus lies as in the textbook (ISUOG Practice Guidelines: head 2020, heart 2023, anomaly scan 2022). Later
outlines cover earlier ones. Whatever `outline` draws stays visible while the beam slides off the plane; what `detail`
draws is lost first.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from awcl_jax.ingest.phantom.biometry import Biometry
from awcl_jax.ingest.phantom.outlines import (
    COARSE,
    Distance,
    Ellipse,
    Medium,
    Outline,
    Point,
    Polygon,
    Rod,
    Tissue,
    window,
)

FLUID = Tissue(-64.0, 0.02, uneven=0.0)
BLOOD = Tissue(-42.0, 0.15, wall=1.1, wall_mm=0.9, uneven=0.0)
SKIN = Tissue(2.0, 0.6, wall=2.2)
SOFT = Tissue(-3.0, 0.5, wall=1.0)
BONE = Tissue(5.0, 14.0, wall=16.0, wall_mm=1.3)
RIB = Tissue(4.0, 5.0, wall=10.0, wall_mm=1.2)
SKULL = Tissue(0.0, 7.0, wall=14.0, wall_mm=1.5)
BRAIN = Tissue(-17.0, 0.35, uneven=1.2)
DEEP_GREY = Tissue(-22.0, 0.35, uneven=0.6)
MEMBRANE = Tissue(5.0, 0.5, wall=3.0, uneven=0.5)
PLEXUS = Tissue(4.0, 0.5, uneven=0.6)
LIVER = Tissue(-4.0, 0.5, uneven=0.8)
LUNG = Tissue(1.0, 0.6, uneven=0.7)
MUSCLE = Tissue(-9.0, 0.6, wall=0.8)
HEART = Tissue(-5.0, 0.5, wall=1.5, uneven=0.7)
KIDNEY = Tissue(-11.0, 0.5, wall=2.5, uneven=0.7)
PLACENTA = Tissue(1.0, 0.5, wall=1.5)
CARTILAGE = Tissue(-12.0, 0.5)


@dataclasses.dataclass(frozen=True)
class View:
    """A plane about to be drawn in some frames.

    Attributes:
      medium: painted into.
      u: position in the plane's coordinates.
      v: position in the plane's coordinates.
      presence: 1 where the plane is met, falling to 0 as the slice leaves it.
      coarse_mm: largest distance of samples `COARSE` apart.
      course: by how many millimetres boundaries stray.
    """

    medium: Medium
    u: Float[np.ndarray, "f depth beam"]
    v: Float[np.ndarray, "f depth beam"]
    presence: Float[np.ndarray, "f 1 1"]
    coarse_mm: float
    course: Float[np.ndarray, "f depth beam"]

    @functools.cached_property
    def _coarse(self) -> tuple[Distance, Distance]:
        """Positions on the grid that is searched for outlines."""
        u, v = (np.ascontiguousarray(at[:, ::COARSE, ::COARSE]) for at in (self.u, self.v))
        return u, v

    def outline(self, shape: Outline, tissue: Tissue) -> None:
        """Paint what is large enough to be cut by neighbouring planes too."""
        self._paint(shape, tissue, np.sqrt(self.presence))

    def detail(self, shape: Outline, tissue: Tissue) -> None:
        """Paint what only this plane shows."""
        self._paint(shape, tissue, self.presence**3)

    def _paint(self, shape: Outline, tissue: Tissue, weight: Float[np.ndarray, "f 1 1"]) -> None:
        rows, columns = window(*self._coarse, shape, margin_mm=self.coarse_mm)
        if rows.stop > rows.start:
            distance = shape.distance(self.u[:, rows, columns], self.v[:, rows, columns])
            self.medium.paint(distance + self.course[:, rows, columns], tissue, weight=weight, window=(rows, columns))


def disc(centre: Point, radius: float) -> Rod:
    """Return the outline of a round vessel, bubble or bone."""
    return Rod([centre], radius)


Draw = Callable[[View, Any, np.random.Generator], None]
"""Paints a plane of a patient of these sizes: a `Biometry`, or a `heart.Heart`."""


def _skull(view: View, a: float, b: float) -> None:
    """Paint scalp, skull and brain of a head with semi-axes a (front is +u) and b to the outer edge of the skull."""
    view.outline(Ellipse((0.0, 0.0), (a + 2.5, b + 2.5)), SKIN)
    view.outline(Ellipse((0.0, 0.0), (a, b)), SKULL)
    view.outline(Ellipse((0.0, 0.0), (a - 1.6, b - 1.6)), BRAIN)


def _front_of_brain(view: View, a: float, b: float) -> None:
    """Paint the falx from the forehead to the cavum septi pellucidi, the fluid between its walls, and the thalami."""
    view.detail(Rod([(0.93 * a, 0.0), (0.55 * a, 0.0)], 0.7), MEMBRANE)
    view.detail(Rod([(0.55 * a, 0.0), (0.3 * a, 0.0)], 0.09 * b), MEMBRANE)
    view.detail(Rod([(0.53 * a, 0.0), (0.32 * a, 0.0)], 0.05 * b), FLUID)
    for side in (-1, 1):
        view.detail(Ellipse((0.02 * a, side * 0.17 * b), (0.22 * a, 0.13 * b), (1.0, -side * 0.35)), DEEP_GREY)
        view.detail(Rod([(0.35 * a, side * 0.55 * b), (0.1 * a, side * 0.6 * b)], 0.8), MEMBRANE)


def head_transventricular(view: View, size: Biometry, rng: np.random.Generator) -> None:
    """HCP: skull ellipse, midline, cavum, and a lateral ventricle with its choroid plexus on either side."""
    a, b = size.head_semi_axes
    _skull(view, a, b)
    view.detail(Rod([(0.0, 0.0), (-0.92 * a, 0.0)], 0.7), MEMBRANE)
    _front_of_brain(view, a, b)
    wide = float(rng.uniform(0.11, 0.16)) * b
    for side in (-1, 1):
        horn = [(-0.08 * a, side * 0.3 * b), (-0.42 * a, side * 0.42 * b), (-0.66 * a, side * 0.4 * b)]
        view.detail(Rod(horn, wide + 1.0), MEMBRANE)
        view.detail(Rod(horn, wide), FLUID)
        view.detail(Rod(horn[:2], 0.75 * wide), PLEXUS)


def _tilted_head(size: Biometry) -> Point:
    """Return the semi-axes of the head in the suboccipitobregmatic plane, which cuts it a little short."""
    a, b = size.head_semi_axes
    return 0.99 * a, 0.97 * b


def head_transcerebellar(view: View, size: Biometry, rng: np.random.Generator) -> None:
    """SOB: the same head tilted back, with the dumb-bell of the cerebellum and the cisterna magna behind it."""
    a, b = _tilted_head(size)
    _skull(view, a, b)
    _front_of_brain(view, a, b)
    view.detail(Ellipse((-0.66 * a, 0.0), (0.24 * a, 0.52 * b)), FLUID)
    lobe = 0.27 * size.cerebellum_width
    at = -0.5 * a + float(rng.uniform(-0.03, 0.03)) * a
    for side in (-1, 1):
        centre = (at, side * 0.95 * lobe)
        view.detail(Ellipse(centre, (0.85 * lobe + 1.3, lobe + 1.3), (1.0, side * 0.25)), MEMBRANE)
        view.detail(Ellipse(centre, (0.85 * lobe, lobe), (1.0, side * 0.25)), BRAIN)
    view.detail(disc((at - 0.1 * lobe, 0.0), 0.36 * lobe), PLEXUS)


def _vertebra(view: View, centre: Point, size: float) -> None:
    """Paint three ossification centres of a vertebra cut across: the body in front, two laminae behind (+v)."""
    u, v = centre
    view.outline(disc((u, v), 0.9 * size), BONE)
    for side in (-1, 1):
        view.outline(
            Rod([(u + side * 0.9 * size, v + 1.7 * size), (u + side * 0.3 * size, v + 2.5 * size)], 0.4 * size),
            BONE,
        )


def _ribs(view: View, radius: float, start: float, stop: float) -> None:
    """Paint a rib on either side, along the wall of the trunk between two angles from its back."""
    angles = np.linspace(start, stop, 5)
    for side in (-1, 1):
        points = [(float(side * radius * np.sin(t)), float(radius * np.cos(t))) for t in angles]
        view.outline(Rod(points, 0.8), RIB)


def abdomen(view: View, size: Biometry, rng: np.random.Generator) -> None:
    """ACP: round trunk with liver, stomach bubble on the left, umbilical vein as a hockey stick, spine at the back."""
    r, (wide, high) = size.abdomen_radius, size.abdomen_semi_axes
    view.outline(Ellipse((0.0, 0.0), (wide, high)), SKIN)
    view.outline(Ellipse((0.0, 0.0), (wide - 2.2, high - 2.2)), LIVER)
    _ribs(view, 0.88 * r, 0.7, 1.5)
    _vertebra(view, (0.0, 0.58 * r), 0.085 * r)
    stomach = float(rng.uniform(0.15, 0.22)) * r
    view.detail(Ellipse((-0.48 * r, 0.12 * r), (stomach, 1.6 * stomach), (1.0, 0.5)), Tissue(-44.0, 0.02, wall=1.8))
    vein = [(0.02 * r, -0.62 * r), (0.03 * r, -0.3 * r), (0.12 * r, -0.1 * r), (0.36 * r, 0.02 * r)]
    view.detail(Rod(vein, 0.065 * r + 0.8), Tissue(2.0, 0.5))
    view.detail(Rod(vein, 0.065 * r), Tissue(-36.0, 0.1))
    view.detail(disc((-0.14 * r, 0.42 * r), 0.075 * r), BLOOD)


def femur_outline(size: Biometry) -> Rod:
    """Return the outline of the femur's shaft; the round caps are part of its length."""
    radius = 0.045 * size.femur_length + 0.6
    half = size.femur_length / 2 - radius
    return Rod([(-half, 0.0), (half, 0.0)], radius)


def femur(view: View, size: Biometry, rng: np.random.Generator) -> None:
    """FLP: the bright shaft along the thigh, its shadow below, cartilage at the ends."""
    shaft = femur_outline(size)
    start, end = shaft.points
    length = size.femur_length
    view.outline(Rod([(start[0] * 1.3, 0.03 * length), (end[0] * 1.2, 0.08 * length)], 0.36 * length), SKIN)
    view.outline(Rod([(start[0] * 1.3, 0.03 * length), (end[0] * 1.2, 0.08 * length)], 0.36 * length - 2), MUSCLE)
    for v in (-0.2, 0.2):
        view.outline(Rod([(start[0], v * length), (end[0], (v + 0.03) * length)], 0.5), SOFT)
    for end_u in (start[0], end[0]):
        view.detail(disc((end_u * 1.12, 0.0), 0.1 * length), CARTILAGE)
    view.detail(shaft, BONE)


def _chest(view: View, size: Biometry) -> float:
    """Paint the trunk at the height of the heart with lungs, ribs and spine; return its radius."""
    r = size.chest_radius
    view.outline(Ellipse((0.0, 0.0), (1.05 * r, r)), SKIN)
    view.outline(Ellipse((0.0, 0.0), (1.05 * r - 2, r - 2)), LUNG)
    _ribs(view, 0.9 * r, 0.5, 2.0)
    _vertebra(view, (0.0, 0.6 * r), 0.09 * r)
    return r


def four_chamber(view: View, size: Biometry, rng: np.random.Generator) -> None:
    """4CH: ventricles and atria about a cross of septum and valves, apex 45 degrees to the left; aorta by the spine."""
    r = _chest(view, size)
    axis = float(rng.uniform(0.8, 1.25))
    at, h = (-0.12 * r, -0.12 * r), 0.58 * r

    def point(along: float, across: float) -> Point:
        """Return `along` from the crux to the apex, up and left; `across` towards the left side of the fetus."""
        c, s = 1 / np.hypot(1.0, axis), axis / np.hypot(1.0, axis)
        return float(at[0] + h * (-c * along - s * across)), float(at[1] + h * (-s * along + c * across))

    turn = (1.0, axis)
    view.outline(Ellipse(point(0.1, 0.0), (1.12 * h, 0.86 * h), turn), HEART)
    view.detail(Ellipse(point(0.48, 0.36), (0.42 * h, 0.23 * h), turn), BLOOD)
    view.detail(Ellipse(point(0.42, -0.36), (0.36 * h, 0.26 * h), turn), BLOOD)
    view.detail(Ellipse(point(-0.42, 0.32), (0.27 * h, 0.27 * h), turn), BLOOD)
    view.detail(Ellipse(point(-0.42, -0.34), (0.28 * h, 0.28 * h), turn), BLOOD)
    view.detail(Rod([point(0.95, 0.0), point(0.05, 0.0)], 0.055 * h), MEMBRANE)
    view.detail(Rod([point(-0.05, 0.58), point(-0.0, 0.02), point(0.06, -0.6)], 0.035 * h + 0.3), MEMBRANE)
    view.detail(disc((-0.16 * r, 0.42 * r), 0.09 * r), BLOOD)


def left_outflow(view: View, size: Biometry, rng: np.random.Generator) -> None:
    """LVOT: the long left ventricle runs on into the ascending aorta, whose wall continues the septum."""
    r = _chest(view, size)
    h, lift = 0.6 * r, float(rng.uniform(-0.08, 0.08)) * r
    view.outline(Ellipse((-0.14 * r, -0.1 * r), (1.08 * h, 0.82 * h), (1.0, 0.5)), HEART)
    ventricle = [(-0.62 * r, -0.36 * r + lift), (-0.3 * r, -0.16 * r), (-0.02 * r, -0.02 * r)]
    aorta = [(-0.02 * r, -0.02 * r), (0.22 * r, -0.16 * r), (0.42 * r, -0.44 * r + lift)]
    view.detail(Rod(aorta, 0.15 * r), MEMBRANE)
    view.detail(Rod(ventricle, 0.14 * r), BLOOD)
    view.detail(Rod(aorta, 0.105 * r), BLOOD)
    view.detail(Ellipse((-0.24 * r, -0.5 * r), (0.3 * r, 0.1 * r), (1.0, 0.45)), BLOOD)
    view.detail(Ellipse((-0.02 * r, 0.24 * r), (0.22 * r, 0.13 * r)), BLOOD)


def right_outflow(view: View, size: Biometry, rng: np.random.Generator) -> None:
    """RVOT: the pulmonary artery leaves the right ventricle, wraps the round aorta and runs back to the spine."""
    r = _chest(view, size)
    h, bend = 0.5 * r, float(rng.uniform(-0.06, 0.06)) * r
    view.outline(Ellipse((-0.02 * r, -0.2 * r), (1.1 * h, 0.95 * h)), HEART)
    artery = [
        (0.3 * r, -0.5 * r),
        (-0.05 * r, -0.56 * r),
        (-0.3 * r, -0.36 * r + bend),
        (-0.34 * r, -0.06 * r),
        (-0.22 * r, 0.3 * r),
    ]
    view.detail(Rod(artery, 0.15 * r), MEMBRANE)
    view.detail(Rod(artery, 0.11 * r), BLOOD)
    view.detail(disc((0.04 * r, -0.22 * r), 0.19 * r), MEMBRANE)
    view.detail(disc((0.04 * r, -0.22 * r), 0.145 * r), BLOOD)
    view.detail(disc((0.34 * r, -0.16 * r), 0.09 * r), BLOOD)


def three_vessels(view: View, size: Biometry, rng: np.random.Generator) -> None:
    """3VT: ductal and aortic arch meet as a V left of the spine; vena cava and trachea lie to their right."""
    r = _chest(view, size)
    gap = float(rng.uniform(-0.05, 0.05)) * r
    view.outline(Ellipse((0.02 * r, -0.26 * r), (0.5 * r, 0.42 * r)), Tissue(-5.0, 0.5))
    meet = (-0.22 * r, 0.34 * r)
    arms = [[(-0.3 * r, -0.52 * r), meet], [(0.12 * r + gap, -0.44 * r), (0.04 * r, -0.1 * r), meet]]
    for arm, radius in zip(arms, (0.105, 0.085), strict=True):
        view.detail(Rod(arm, radius * r + 1.0), MEMBRANE)
    for arm, radius in zip(arms, (0.105, 0.085), strict=True):
        view.detail(Rod(arm, radius * r), BLOOD)
    view.detail(disc((0.4 * r + gap, -0.34 * r), 0.1 * r + 0.9), MEMBRANE)
    view.detail(disc((0.4 * r + gap, -0.34 * r), 0.1 * r), BLOOD)
    view.detail(disc((0.2 * r, 0.14 * r), 0.09 * r), BONE)
    view.detail(disc((0.2 * r, 0.14 * r), 0.045 * r), FLUID)


def spine_coronal(view: View, size: Biometry, rng: np.random.Generator) -> None:
    """SPINE_COR: two parallel rows of ossification centres that close at the sacrum, ribs going off on both sides."""
    r = size.abdomen_radius
    view.outline(Ellipse((0.0, 0.0), (1.75 * r, 0.85 * r)), SKIN)
    view.outline(Ellipse((0.0, 0.0), (1.75 * r - 2, 0.85 * r - 2)), SOFT)
    bend = float(rng.uniform(-0.12, 0.12)) * r
    for t in np.linspace(-1, 1, 15).tolist():
        half = 0.13 * r * (1 - 0.75 * max(0.0, t - 0.45)) * (1 + 0.35 * max(0.0, -t - 0.6))
        middle = bend * (t * t - 0.5)
        for side in (-1, 1):
            view.detail(disc((1.4 * r * t, middle + side * half), 0.045 * r + 0.3), BONE)
            if -0.7 < t < 0.15:
                foot = (1.4 * r * t, middle + side * (half + 0.12 * r))
                view.detail(
                    Rod([foot, (foot[0] + 0.12 * r, foot[1] + side * 0.38 * r)], 0.5), Tissue(6.0, 3.0, wall=3.0)
                )


def spine_sagittal(view: View, size: Biometry, rng: np.random.Generator) -> None:
    """SPINE_SAG: vertebral bodies and arches as two close rows along a curve, up at the sacrum, under the skin."""
    r = size.abdomen_radius
    bend = float(rng.uniform(0.10, 0.22)) * r

    def curve(t: float) -> float:
        return bend * t * t - 0.45 * r - (0.5 * r * (t - 0.6) ** 2 if t > 0.6 else 0.0)

    ts = np.linspace(-1.05, 1.1, 9).tolist()
    back = [(1.4 * r * t, curve(t) - 0.2 * r) for t in ts]
    belly = [(1.4 * r * t, curve(0.0) + (1.25 - 0.45 * t * t) * r) for t in reversed(ts)]
    view.outline(Polygon(back + belly), SKIN)
    view.outline(Polygon([(u, v + 2.0) for u, v in back] + [(u, v - 2.0) for u, v in belly]), SOFT)
    for t in np.linspace(-1, 1, 16).tolist():
        v = curve(t)
        view.detail(disc((1.4 * r * t, v - 0.02 * r), 0.03 * r + 0.3), BONE)
        view.detail(disc((1.4 * r * t, v + 0.17 * r), 0.055 * r + 0.2), BONE)


def kidneys_coronal(view: View, size: Biometry, rng: np.random.Generator) -> None:
    """KIDNEYS_CORONAL: two beans with bright capsule and dark pelvis either side of the aorta."""
    r = size.abdomen_radius
    view.outline(Ellipse((0.0, 0.0), (1.5 * r, 0.92 * r)), SKIN)
    view.outline(Ellipse((0.0, 0.0), (1.5 * r - 2, 0.92 * r - 2)), LIVER)
    view.detail(Rod([(-1.1 * r, 0.0), (0.35 * r, 0.0)], 0.055 * r + 0.6), MEMBRANE)
    view.detail(Rod([(-1.1 * r, 0.0), (0.35 * r, 0.0)], 0.055 * r), BLOOD)
    half = 0.55 * size.kidney_length
    for side in (-1, 1):
        centre, tilt = (float(rng.uniform(-0.15, 0.1)) * r, side * 0.42 * r), (1.0, side * 0.22)
        view.detail(Ellipse(centre, (half + 1.5, 0.52 * half + 1.5), tilt), Tissue(4.0, 0.6, wall=2.0))
        view.detail(Ellipse(centre, (half, 0.52 * half), tilt), KIDNEY)
        view.detail(Ellipse(centre, (0.6 * half, 0.24 * half), tilt), PLEXUS)
        view.detail(Ellipse(centre, (0.4 * half, 0.11 * half), tilt), FLUID)
    view.detail(Ellipse((1.05 * r, 0.0), (0.2 * r, 0.16 * r)), Tissue(-46.0, 0.02, wall=1.5))


_PROFILE = [
    (-1.0, 0.1), (-0.9, -0.35), (-0.6, -0.7), (-0.15, -0.85), (0.3, -0.74), (0.52, -0.52), (0.55, -0.34), (0.86, -0.26),
    (0.84, -0.12), (0.66, -0.1), (0.79, 0.0), (0.64, 0.07), (0.77, 0.15), (0.6, 0.24), (0.7, 0.4), (0.52, 0.52),
    (0.2, 0.54), (0.05, 0.85), (-0.6, 0.9), (-0.85, 0.5),
]  # fmt: skip
"""Outline of head, face and neck from the side, in units of half the head's length; the face to the right."""


def profile(view: View, size: Biometry, rng: np.random.Generator) -> None:
    """PROFILE: forehead, nose, lips and chin against the fluid, with frontal bone, nasal bone, palate and jaw."""
    a = size.head_semi_axes[0]
    view = dataclasses.replace(view, u=view.u + np.float32(0.25 * a))
    nose = float(rng.uniform(-0.05, 0.06))
    points = [(a * (u + (nose if v in (-0.26, -0.12) else 0.0)), a * v) for u, v in _PROFILE]
    view.outline(Polygon(points), SKIN)
    view.outline(Polygon([(u - 2.2, v * 0.97) for u, v in points]), Tissue(-6.0, 0.5))
    skull = [(-0.86, 0.1), (-0.78, -0.32), (-0.52, -0.6), (-0.15, -0.73), (0.24, -0.63), (0.44, -0.44), (0.46, -0.34)]
    view.outline(Ellipse((-0.2 * a, -0.14 * a), (0.62 * a, 0.56 * a)), BRAIN)
    view.outline(Rod([(a * u, a * v) for u, v in skull], 1.1), SKULL)
    view.detail(Rod([(0.53 * a, -0.3 * a), (0.66 * a, -0.22 * a)], 0.9), BONE)
    view.detail(Rod([(0.52 * a, -0.02 * a), (0.12 * a, 0.02 * a)], 1.2), BONE)
    view.detail(Rod([(0.54 * a, 0.3 * a), (0.2 * a, 0.36 * a)], 1.2), BONE)
    view.detail(Ellipse((0.3 * a, 0.14 * a), (0.2 * a, 0.06 * a)), FLUID)


def nose_lips(view: View, size: Biometry, rng: np.random.Generator) -> None:
    """NOSE_LIPS: coronal cut with the tip of the nose, two nostrils, both lips about a dark mouth, and the chin."""
    w = 0.42 * size.head_semi_axes[1] * float(rng.uniform(0.92, 1.08))
    view.outline(Ellipse((0.0, 1.25 * w), (2.0 * w, 0.95 * w)), Tissue(-5.0, 0.5, wall=1.5))
    view.outline(Ellipse((0.0, 0.55 * w), (1.55 * w, 1.5 * w)), Tissue(-5.0, 0.5, wall=1.5))
    view.detail(Ellipse((0.0, -0.85 * w), (0.85 * w, 0.62 * w)), SKIN)
    for side in (-1, 1):
        view.detail(disc((side * 0.72 * w, -0.6 * w), 0.36 * w), SKIN)
        view.detail(Ellipse((side * 0.36 * w, -0.62 * w), (0.2 * w, 0.15 * w), (1.0, side * 0.4)), FLUID)
    lips = [(-1.0, 0.42), (-0.45, 0.2), (0.0, 0.3), (0.45, 0.2), (1.0, 0.42)]
    view.detail(Rod([(w * u, w * v) for u, v in lips], 0.2 * w), Tissue(6.0, 0.6, wall=2.0))
    view.detail(Rod([(-0.8 * w, 0.86 * w), (0.0, 0.98 * w), (0.8 * w, 0.86 * w)], 0.2 * w), Tissue(6.0, 0.6, wall=2.0))
    view.detail(Rod([(-0.95 * w, 0.62 * w), (0.0, 0.64 * w), (0.95 * w, 0.62 * w)], 0.11 * w), FLUID)
    view.detail(Ellipse((0.0, 1.62 * w), (0.6 * w, 0.34 * w)), Tissue(3.0, 0.6, wall=2.0))


def background(view: View, size: Biometry, rng: np.random.Generator) -> None:
    """BG: no plane. A limb, loops of cord, the placenta's edge, or the bladder over the lower segment."""
    r = size.abdomen_radius
    kind = int(rng.integers(4))
    if kind == 0:
        view.outline(Rod([(-1.2 * r, 0.1 * r), (1.1 * r, -0.1 * r)], 0.42 * r), SKIN)
        view.outline(Rod([(-1.2 * r, 0.1 * r), (1.1 * r, -0.1 * r)], 0.42 * r - 2), MUSCLE)
        view.outline(Rod([(-0.8 * r, -0.02 * r), (0.35 * r, -0.16 * r)], 1.1), BONE)
        view.outline(Rod([(-0.8 * r, 0.26 * r), (0.3 * r, 0.12 * r)], 1.0), BONE)
    elif kind == 1:
        for u, v in [(-0.9, 0.0), (-0.3, 0.3), (0.3, -0.1), (0.9, 0.2)]:
            view.outline(disc((u * r, v * r), 0.3 * r), Tissue(-6.0, 0.5, wall=1.2))
            view.outline(disc(((u - 0.08) * r, v * r), 0.13 * r), BLOOD)
            for dv in (-0.12, 0.1):
                view.outline(disc(((u + 0.14) * r, (v + dv) * r), 0.07 * r), BLOOD)
    elif kind == 2:
        view.outline(Ellipse((-0.3 * r, 0.35 * r), (2.2 * r, 0.75 * r), (1.0, 0.2)), PLACENTA)
        for u, v in rng.uniform(-0.7, 0.7, (4, 2)).tolist():
            view.outline(Ellipse((2 * u * r, (0.35 + 0.5 * v) * r), (0.22 * r, 0.08 * r)), BLOOD)
    else:
        view.outline(Ellipse((0.2 * r, -0.55 * r), (1.1 * r, 0.42 * r), (1.0, 0.15)), FLUID)
        view.outline(Rod([(-1.6 * r, 0.35 * r), (0.0, 0.15 * r), (1.6 * r, 0.5 * r)], 0.3 * r), SOFT)
        view.outline(Rod([(-1.2 * r, 0.33 * r), (0.0, 0.15 * r)], 0.06 * r), Tissue(-16.0, 0.5))


@dataclasses.dataclass(frozen=True)
class Plane:
    """How a plane is shown.

    Attributes:
      draw: paints it.
      reach: half its extent in depth, in millimetres, by which the depth of the picture is set.
      tilt: largest turn away from the textbook position, in radians.
      stray: distance from the middle, as a share of the usual one.
    """

    draw: Draw
    reach: Callable[[Any], float]
    tilt: float
    stray: float = 1.0


def _head_reach(size: Biometry) -> float:
    return 1.2 * size.head_semi_axes[1]


def _trunk_reach(size: Biometry) -> float:
    return size.abdomen_radius


def _chest_reach(size: Biometry) -> float:
    return 0.9 * size.chest_radius


PLANES: Mapping[str, Plane] = {
    "3VT": Plane(three_vessels, _chest_reach, 0.7),
    "4CH": Plane(four_chamber, _chest_reach, 0.7),
    "LVOT": Plane(left_outflow, _chest_reach, 0.7),
    "RVOT": Plane(right_outflow, _chest_reach, 0.7),
    "SPINE_COR": Plane(spine_coronal, _trunk_reach, 0.5),
    "SPINE_SAG": Plane(spine_sagittal, _trunk_reach, 0.4),
    "HCP": Plane(head_transventricular, _head_reach, 0.6),
    "SOB": Plane(head_transcerebellar, _head_reach, 0.6),
    "PROFILE": Plane(profile, _head_reach, 0.6),
    "NOSE_LIPS": Plane(nose_lips, lambda size: 0.8 * size.head_semi_axes[1], 0.6),
    "ACP": Plane(abdomen, _trunk_reach, 1.0),
    "FLP": Plane(femur, lambda size: 0.5 * size.femur_length, 0.5),
    "KIDNEYS_CORONAL": Plane(kidneys_coronal, _trunk_reach, 0.5),
    "BG": Plane(background, _trunk_reach, 0.8),
}
"""The planes of FETAL_PLANES_14 and how each is shown."""

MASKS = ("background", "head", "abdomen", "femur")
"""What the values 0, 1, ... of a mask mean: the structures that growth is measured on."""


def measured(plane: str, size: Biometry) -> list[tuple[str, Outline]]:
    """Name in MASKS and outline of the structure measured in a plane, if there is one."""
    if plane == "HCP":
        return [("head", Ellipse((0.0, 0.0), size.head_semi_axes))]
    if plane == "SOB":
        return [("head", Ellipse((0.0, 0.0), _tilted_head(size)))]
    if plane == "ACP":
        return [("abdomen", Ellipse((0.0, 0.0), size.abdomen_semi_axes))]
    if plane == "FLP":
        return [("femur", femur_outline(size))]
    return []
