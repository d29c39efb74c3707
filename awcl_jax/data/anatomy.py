"""Anatomy labels: planes, coarser groups of them, and the share of labels that pretraining may use.

The *fine* names are standard planes, the *coarse* ones merge them (the *granularity* of Fu et al. 2022). A frame that
shows none of them, or whose label is withheld, is `UNLABELLED`.
"""

import dataclasses
import difflib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from awcl_jax.runtime.errors import InputError

UNLABELLED = -1

GRANULARITIES = ("fine", "coarse")


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """Fine anatomy names, each with the coarse group it belongs to.

    Attributes:
      groups: coarse name -> its fine names. Fine names are unique over all groups; ids count in this order.
      aliases: other spellings of a fine name, as publishers write them.
    """

    groups: Mapping[str, tuple[str, ...]]
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.fine)) != len(self.fine):
            raise InputError(f"A fine anatomy must belong to one coarse group only; got {self.fine}.")
        for alias, name in self.aliases.items():
            if name not in self.fine:
                raise InputError(f"The alias {alias!r} means {name!r}, which is not an anatomy of this taxonomy.")

    @property
    def fine(self) -> tuple[str, ...]:
        return tuple(name for names in self.groups.values() for name in names)

    @property
    def coarse(self) -> tuple[str, ...]:
        return tuple(self.groups)

    def coarse_of(self, fine: str) -> str:
        """Return the coarse group of a fine anatomy."""
        return next(group for group, names in self.groups.items() if fine in names)

    def resolve(self, name: str) -> str:
        """Return the fine name that `name` or its alias stands for.

        Raises:
          InputError: the name is unknown; the message suggests the most similar known name.
        """
        name = self.aliases.get(name, name)
        if name in self.fine:
            return name
        nearest = difflib.get_close_matches(name, [*self.fine, *self.aliases], n=1, cutoff=0.0)
        raise InputError(f"Unknown plane {name!r}: did you mean {nearest[0]!r}? Known planes: {', '.join(self.fine)}.")


FETAL_PLANES_14 = Taxonomy(
    {
        "heart": ("3VT", "4CH", "LVOT", "RVOT"),
        "spine": ("SPINE_COR", "SPINE_SAG"),
        "head": ("HCP", "SOB"),
        "face": ("PROFILE", "NOSE_LIPS"),
        "abdomen": ("ACP",),
        "femur": ("FLP",),
        "kidneys": ("KIDNEYS_CORONAL",),
        "background": ("BG",),
    }
)
"""The fourteen planes of the published AWCL code; the coarse groups are ours."""

FETAL_PLANES_DB = Taxonomy(
    {
        "abdomen": ("abdomen",),
        "head": ("trans-thalamic", "trans-cerebellum", "trans-ventricular"),
        "femur": ("femur",),
        "thorax": ("thorax",),
        "cervix": ("cervix",),
    },
    aliases={
        "Fetal abdomen": "abdomen",
        "Trans-thalamic": "trans-thalamic",
        "Trans-cerebellum": "trans-cerebellum",
        "Trans-ventricular": "trans-ventricular",
        "Fetal femur": "femur",
        "Fetal thorax": "thorax",
        "Maternal cervix": "cervix",
    },
)
"""Planes of FETAL_PLANES_DB (Burgos-Artizzu et al. 2020); the brain's three sub-planes are one coarse group."""

HC18 = Taxonomy({"head": ("HCP",)})
"""The one plane of HC18 (van den Heuvel et al. 2018), named as in FETAL_PLANES_14."""

APICAL_VIEWS = Taxonomy({"heart": ("2CH", "4CH")})
"""Views of an adult's heart from its apex, as in CAMUS (Leclerc et al. 2019): two and four chambers."""

BUSI = Taxonomy({"breast": ("benign", "malignant", "normal")})
"""BUSI (Al-Dhabyani et al. 2020) shows one organ; the classes are findings."""

USGRA_SEG = Taxonomy({"nerve block": ("nerve block",)})
"""USGRA_SEG does not state which nerve a frame shows."""


def keep_anatomy_ratio(labels: Int[np.ndarray, " n"], ratio: float, *, seed: int) -> Int[np.ndarray, " n"]:
    """Keep the labels of a share `ratio` of the labelled frames and remove the others (the paper's *anatomy ratio*).

    Frames are drawn one by one from the seed, so the labels kept at a lower ratio are among those kept at a higher one.

    Args:
      labels: anatomy of each frame, UNLABELLED where there is none.
      ratio: share of the labelled frames, from 0 (SimCLR) to 1, that keep their label; rounded to whole frames.
      seed: of the draw.

    Returns:
      labels [n], UNLABELLED where a frame had none or its label is withheld.

    Raises:
      InputError: `ratio` is outside 0 to 1.
    """
    if not 0.0 <= ratio <= 1.0:
        raise InputError(f"The anatomy ratio must be a share from 0 to 1; got {ratio}.")
    labelled = np.flatnonzero(labels != UNLABELLED)
    order = np.random.default_rng([seed, 0x0A7A]).permutation(labelled)
    kept = order[: round(ratio * labelled.size)]
    result = np.full_like(labels, UNLABELLED)
    result[kept] = labels[kept]
    return result
