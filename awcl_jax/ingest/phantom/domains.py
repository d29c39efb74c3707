"""What a phantom can be of: the fetus in the womb, and the heart in an adult's chest."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from awcl_jax.data.anatomy import APICAL_VIEWS, FETAL_PLANES_14, Taxonomy
from awcl_jax.ingest.phantom import examination, heart, planes, surroundings
from awcl_jax.ingest.phantom.biometry import draw_biometry
from awcl_jax.ingest.phantom.display import Field
from awcl_jax.ingest.phantom.examination import Machine, Pose, Settings
from awcl_jax.ingest.phantom.outlines import Medium, Outline
from awcl_jax.ingest.phantom.planes import Plane


@runtime_checkable
class Surround(Protocol):
    """Makes the medium about a plane."""

    def __call__(
        self, rng: np.random.Generator, settings: Settings, pose: Pose, *, field: Field, reach_mm: float
    ) -> Medium:
        """Return the medium before the plane is painted."""


@dataclasses.dataclass(frozen=True, eq=False)
class Domain:
    """A part of the body and those who scan it. Sizes are what `draw_sizes` gives.

    Attributes:
      taxonomy: of the planes.
      planes: how each is shown.
      masks: what the values 0, 1, ... of a mask mean.
      measured: names in `masks` and outlines of what a plane shows of them; later ones cover earlier ones.
      draw_sizes: of a patient.
      sizes_at: of the patient at the moment of a visit.
      surround: makes the medium about a plane.
      machines: that it is scanned with.
      most_away: most frames on the way to a plane.
      bends_within: organs vary within what is measured (and about what is not); otherwise, about it.
    """

    taxonomy: Taxonomy
    planes: Mapping[str, Plane]
    masks: tuple[str, ...]
    measured: Callable[[str, Any], list[tuple[str, Outline]]]
    draw_sizes: Callable[[np.random.Generator], Any]
    sizes_at: Callable[[Any, np.random.Generator], Any]
    surround: Surround
    machines: tuple[Machine, ...]
    most_away: int
    bends_within: bool


FETUS = Domain(
    taxonomy=FETAL_PLANES_14,
    planes=planes.PLANES,
    masks=planes.MASKS,
    measured=planes.measured,
    draw_sizes=draw_biometry,
    sizes_at=lambda size, rng: size,
    surround=surroundings.womb,
    machines=examination.MACHINES,
    most_away=2,
    bends_within=True,
)

HEART = Domain(
    taxonomy=APICAL_VIEWS,
    planes=heart.PLANES,
    masks=heart.MASKS,
    measured=heart.measured,
    draw_sizes=heart.draw_heart,
    sizes_at=heart.contract,
    surround=surroundings.chest,
    machines=heart.MACHINES,
    most_away=0,
    bends_within=False,
)

DOMAINS = {"fetus": FETUS, "heart": HEART}
