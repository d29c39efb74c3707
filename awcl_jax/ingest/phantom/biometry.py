"""How big a fetus is: growth by gestational age, and how one fetus departs from it.

Circumferences and femur length follow Hadlock et al. (1984), Radiology 152:497, with w weeks and lengths in cm:

    HC = -11.48 + 1.56 w - 0.0002548 w^3    AC = -13.3 + 1.61 w - 0.00998 w^2    FL = -3.91 + 0.427 w - 0.0034 w^2

Three rules of thumb of the second trimester supply the rest: the cerebellum is about as wide, and a kidney about as
long, in millimetres as the pregnancy is old in weeks; the heart takes a third of the area of the chest.
"""

import dataclasses
import math

import numpy as np

WEEKS = (18.0, 30.0)
"""Gestational ages of the phantom's patients, from the anomaly scan to the early third trimester."""


@dataclasses.dataclass(frozen=True)
class Biometry:
    """Sizes of one fetus, in millimetres unless the name says otherwise.

    Attributes:
      weeks: gestational age.
      head_circumference: around the outer edge of the skull.
      cephalic_index: width of the head over its length.
      abdominal_circumference: around the skin.
      abdominal_ratio: height over width of the abdomen.
      femur_length: of the ossified shaft.
    """

    weeks: float
    head_circumference: float
    cephalic_index: float
    abdominal_circumference: float
    abdominal_ratio: float
    femur_length: float

    @property
    def head_semi_axes(self) -> tuple[float, float]:
        """Half the occipito-frontal and half the biparietal diameter of an ellipse of this circumference."""
        long = self.head_circumference / ellipse_circumference(1.0, self.cephalic_index)
        return long, long * self.cephalic_index

    @property
    def abdomen_semi_axes(self) -> tuple[float, float]:
        """Half the transverse and half the antero-posterior diameter."""
        wide = self.abdominal_circumference / ellipse_circumference(1.0, self.abdominal_ratio)
        return wide, wide * self.abdominal_ratio

    @property
    def abdomen_radius(self) -> float:
        return self.abdominal_circumference / (2 * math.pi)

    @property
    def chest_radius(self) -> float:
        return 0.86 * self.abdomen_radius

    @property
    def cerebellum_width(self) -> float:
        return self.weeks

    @property
    def kidney_length(self) -> float:
        return self.weeks


def ellipse_circumference(semi_long: float, semi_short: float) -> float:
    """Return an ellipse's circumference, pi (3 (a + b) - sqrt((3a + b)(a + 3b))) (Ramanujan 1914), to 1e-5 here."""
    a, b = semi_long, semi_short
    return math.pi * (3 * (a + b) - math.sqrt((3 * a + b) * (a + 3 * b)))


def draw_biometry(rng: np.random.Generator) -> Biometry:
    """Draw a fetus of random age whose sizes scatter by 4 % about the growth chart."""
    w = float(rng.uniform(*WEEKS))
    head, abdomen, femur = (float(factor) for factor in 1 + 0.04 * rng.standard_normal(3).clip(-2, 2))
    return Biometry(
        weeks=w,
        head_circumference=10 * head * (-11.48 + 1.56 * w - 0.0002548 * w**3),
        cephalic_index=float(rng.uniform(0.72, 0.86)),
        abdominal_circumference=10 * abdomen * (-13.3 + 1.61 * w - 0.00998 * w**2),
        abdominal_ratio=float(rng.uniform(0.9, 1.1)),
        femur_length=10 * femur * (-3.91 + 0.427 * w - 0.0034 * w**2),
    )
