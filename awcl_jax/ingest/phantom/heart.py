"""The heart of an adult from the apex: four chambers, as an echocardiogram shows them.

Sizes at end diastole scatter about those of Lang et al. (2015), J Am Soc Echocardiogr 28:1, tables 2, 4 and 8; at end
systole the left ventricle is shorter and narrower, its wall thicker and the atria wider. A visit is somewhere between
the two. The mask is of what is outlined on such frames (as in CAMUS, Leclerc et al. 2019): the left ventricle, the
myocardium about it, and the left atrium.
"""

import dataclasses
import math

import numpy as np

from awcl_jax.ingest.phantom.acoustics import Transducer
from awcl_jax.ingest.phantom.examination import Machine
from awcl_jax.ingest.phantom.outlines import Bullet, Outline, Point, Rod, Tissue
from awcl_jax.ingest.phantom.planes import Plane, View, disc

MASKS = ("background", "left ventricle", "myocardium", "left atrium")
"""What the values 0, 1, ... of a mask mean."""

MACHINES = (
    Machine("Cardiac 2.5", Transducer(2.5, 3.0, 5.5, 0.6), 7.0, 0.65, 0.5, 58.0, 1.0, "C 2.5", (0.03, 0.05), "right"),
    Machine("Cardiac 3", Transducer(3.0, 3.0, 5.0, 0.5), 5.0, 0.74, 0.8, 64.0, 0.9, "3.0", (0.92, 0.03), "left"),
    Machine("Pocket 2", Transducer(2.2, 5.0, 6.5, 0.5), 9.0, 0.58, 0.3, 48.0, 1.25, "P2", (0.03, 0.86), "bar"),
)
"""Phased arrays: next to no face, and a wide sector from between two ribs."""

CAVITY = Tissue(-36.0, 0.15, uneven=0.5)
MYOCARDIUM = Tissue(-8.0, 0.5, wall=1.2, uneven=0.7)
ENDOCARDIUM = Tissue(-4.0, 0.5, wall=3.0)
PERICARDIUM = Tissue(6.0, 0.6, wall=4.0)
VALVE = Tissue(0.0, 0.5, wall=2.5)


@dataclasses.dataclass(frozen=True)
class Heart:
    """Sizes of one heart at one moment, in millimetres.

    Attributes:
      ventricle_length: of the left ventricle's cavity, from the mitral annulus to the apex.
      ventricle_width: the greatest, of the same.
      wall: thickness of the left ventricle's wall and of the septum.
      atrium_length: of the left atrium, from the annulus to its roof.
      atrium_width: of the same.
      right_width: of the right ventricle at its base.
      contraction: 0 at end diastole, 1 at end systole.
    """

    ventricle_length: float
    ventricle_width: float
    wall: float
    atrium_length: float
    atrium_width: float
    right_width: float
    contraction: float = 0.0

    def at(self, contraction: float) -> "Heart":
        """Return this heart, given at end diastole, at a stage of its contraction."""
        c = contraction
        return Heart(
            ventricle_length=self.ventricle_length * (1 - 0.16 * c),
            ventricle_width=self.ventricle_width * (1 - 0.30 * c),
            wall=self.wall * (1 + 0.35 * c),
            atrium_length=self.atrium_length * (1 + 0.22 * c),
            atrium_width=self.atrium_width * (1 + 0.15 * c),
            right_width=self.right_width * (1 - 0.2 * c),
            contraction=c,
        )

    @property
    def _lift(self) -> float:
        """How far the annulus lies below the middle of the whole: v is counted from there."""
        return (self.ventricle_length + self.wall - self.atrium_length) / 2

    @property
    def extent(self) -> float:
        """Half the length from the apex to the roof of the atrium."""
        return (self.ventricle_length + self.wall + self.atrium_length) / 2

    @property
    def axis(self) -> tuple[Point, Point]:
        """Middle of the mitral annulus, and the tip of the left ventricle's cavity, which leans to the middle."""
        base = (self.wall + self.ventricle_width) / 2
        return (base, self._lift), (0.45 * base, self._lift - self.ventricle_length)

    @property
    def left_ventricle(self) -> Bullet:
        return Bullet(*self.axis, 0.5 * self.ventricle_width)

    @property
    def myocardium(self) -> Bullet:
        """The outer edge; the cavity lies in it."""
        base, apex = self.axis
        share = 1 + self.wall / self.ventricle_length
        tip = (base[0] + share * (apex[0] - base[0]), base[1] + share * (apex[1] - base[1]))
        return Bullet(base, tip, 0.5 * self.ventricle_width + self.wall)

    @property
    def left_atrium(self) -> Bullet:
        (u, v), _ = self.axis
        return Bullet((u, v), (u, v + self.atrium_length), 0.5 * self.atrium_width)

    @property
    def right_ventricle(self) -> Bullet:
        (u, v), tip = self.right_annulus, (-0.1 * self.right_width, self._lift - 0.8 * self.ventricle_length)
        return Bullet((u, v), tip, 0.5 * self.right_width)

    @property
    def right_atrium(self) -> Bullet:
        u, v = self.right_annulus
        return Bullet((u, v), (u, v + 0.95 * self.atrium_length), 0.55 * self.right_width)

    @property
    def right_annulus(self) -> Point:
        """Middle of the tricuspid annulus."""
        return -(self.wall + self.right_width) / 2, self._lift


def draw_heart(rng: np.random.Generator) -> Heart:
    """Draw a heart at end diastole whose sizes scatter by 8 % about the ordinary."""
    length, width, wall, atrium, across, right = (1 + 0.08 * rng.standard_normal(6).clip(-2, 2)).tolist()
    return Heart(84.0 * length, 47.0 * width, 9.0 * wall, 42.0 * atrium, 38.0 * across, 33.0 * right)


def contract(heart: Heart, rng: np.random.Generator) -> Heart:
    """Return the heart at the moment of a visit."""
    return heart.at(float(rng.uniform(0, 1)))


def four_chamber(view: View, heart: Heart, rng: np.random.Generator) -> None:
    """4CH: ventricles above, atria below, valves between them; the right side of the heart is on the left."""
    chambers = (heart.right_atrium, heart.left_atrium, heart.right_ventricle)
    for more, tissue in ((5.5, PERICARDIUM), (3.5, MYOCARDIUM)):
        for chamber in chambers:
            view.outline(chamber.widened(more), tissue)
    view.outline(heart.myocardium.widened(2.0), PERICARDIUM)
    view.detail(heart.right_ventricle, CAVITY)
    # The septum is the left ventricle's, and covers what the right one has of it.
    view.detail(heart.myocardium, MYOCARDIUM)
    view.detail(heart.left_ventricle.widened(0.8), ENDOCARDIUM)
    for chamber in (heart.left_ventricle, heart.left_atrium, heart.right_atrium):
        view.detail(chamber, CAVITY)
    _trabeculae(view, heart, rng)
    for (u, v), width in ((heart.axis[0], heart.ventricle_width), (heart.right_annulus, heart.right_width)):
        _valve(view, (u, v), width / 2, contraction=heart.contraction)
    (u, v), _ = heart.axis
    aorta = (u + 0.2 * heart.atrium_width, v + heart.atrium_length + 14.0)
    view.detail(disc(aorta, 11.0), PERICARDIUM)
    view.detail(disc(aorta, 9.5), CAVITY)


def measured(plane: str, heart: Heart) -> list[tuple[str, Outline]]:
    """Return names in MASKS and outlines, of which later ones cover earlier ones."""
    del plane  # there is one
    return [
        ("myocardium", heart.myocardium),
        ("left atrium", heart.left_atrium),
        ("left ventricle", heart.left_ventricle),
    ]


def _valve(view: View, middle: Point, half: float, *, contraction: float) -> None:
    """Paint two leaflets from the annulus: open into the ventricle at end diastole, closed at end systole."""
    u, v = middle
    gap = 0.45 * half * (1 - contraction)
    for side in (-1, 1):
        tip = (u + side * gap, v - 0.25 * half - 0.55 * half * (1 - contraction))
        view.detail(Rod([(u + side * 0.85 * half, v), tip], 0.9), VALVE)


def _trabeculae(view: View, heart: Heart, rng: np.random.Generator) -> None:
    """Paint papillary muscles and strands along the free wall, within the cavity that is outlined around them."""
    (bu, bv), (au, av) = heart.axis
    for along, length in zip(rng.uniform(0.45, 0.7, 2).tolist(), rng.uniform(0.08, 0.18, 2).tolist(), strict=True):
        across = 0.3 * heart.ventricle_width * math.sqrt(1 - along**2)
        points = [(bu + t * (au - bu) + across, bv + t * (av - bv)) for t in (along - length, along + length)]
        view.detail(Rod(points, 0.06 * heart.ventricle_width), Tissue(-14.0, 0.4, wall=0.8))


PLANES = {"4CH": Plane(four_chamber, lambda heart: 0.85 * heart.extent, 0.22, stray=0.2)}
"""The one view of it."""
