"""Planes, their groups, and the share of labels in use."""

import itertools

import numpy as np
import pytest

from awcl_jax.data.anatomy import FETAL_PLANES_14, FETAL_PLANES_DB, UNLABELLED, Taxonomy, keep_anatomy_ratio
from awcl_jax.runtime.errors import InputError

LABELS = np.where(np.arange(200) % 4 == 3, UNLABELLED, np.arange(200) % 7).astype(np.int32)  # 150 labelled, 50 not


def test_fourteen_planes_in_eight_groups():
    # The grouping written out once more, plane by plane.
    groups = {
        "3VT": "heart", "4CH": "heart", "LVOT": "heart", "RVOT": "heart", "SPINE_COR": "spine", "SPINE_SAG": "spine",
        "HCP": "head", "SOB": "head", "PROFILE": "face", "NOSE_LIPS": "face", "ACP": "abdomen", "FLP": "femur",
        "KIDNEYS_CORONAL": "kidneys", "BG": "background",
    }  # fmt: skip
    assert len(FETAL_PLANES_14.fine) == 14
    assert {plane: FETAL_PLANES_14.coarse_of(plane) for plane in FETAL_PLANES_14.fine} == groups
    assert list(FETAL_PLANES_14.coarse) == list(dict.fromkeys(groups.values()))


def test_brain_sub_planes_are_one_coarse_anatomy():
    brain = ["Trans-thalamic", "Trans-cerebellum", "Trans-ventricular"]
    assert {FETAL_PLANES_DB.coarse_of(FETAL_PLANES_DB.resolve(name)) for name in brain} == {"head"}
    assert len({FETAL_PLANES_DB.resolve(name) for name in brain}) == 3


def test_resolve_takes_names_and_aliases():
    assert FETAL_PLANES_DB.resolve("Maternal cervix") == "cervix"
    assert FETAL_PLANES_DB.resolve("cervix") == "cervix"


def test_resolve_proposes_the_nearest():
    with pytest.raises(InputError, match="'LVOTT': did you mean 'LVOT'"):
        FETAL_PLANES_14.resolve("LVOTT")


def test_a_fine_name_has_one_group():
    with pytest.raises(InputError, match="one coarse group"):
        Taxonomy({"head": ("HCP",), "face": ("HCP",)})


def test_an_alias_means_a_known_name():
    with pytest.raises(InputError, match="'kidney' means 'KIDNEY'"):
        Taxonomy({"head": ("HCP",)}, aliases={"kidney": "KIDNEY"})


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, 0), (0.1, 15), (0.5, 75), (0.501, 75), (0.999, 150), (1.0, 150)])
def test_anatomy_ratio_keeps_its_share(ratio, kept):
    result = keep_anatomy_ratio(LABELS, ratio, seed=3)
    assert (result != UNLABELLED).sum() == kept
    in_use = result != UNLABELLED
    np.testing.assert_array_equal(result[in_use], LABELS[in_use])


def test_a_lower_ratio_keeps_a_part_of_a_higher():
    kept = [set(np.flatnonzero(keep_anatomy_ratio(LABELS, ratio / 10, seed=0) != UNLABELLED)) for ratio in range(11)]
    assert all(fewer < more for fewer, more in itertools.pairwise(kept))


def test_anatomy_ratio_is_drawn_from_the_seed_over_all_anatomies():
    one, again, other = (keep_anatomy_ratio(LABELS, 0.5, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    # 75 of 150 over 7 anatomies: every one of them keeps some and loses some.
    assert all(0 < (one == anatomy).sum() < (anatomy == LABELS).sum() for anatomy in range(7))


def test_anatomy_ratio_leaves_its_argument_alone():
    labels = LABELS.copy()
    assert keep_anatomy_ratio(labels, 0.1, seed=0).dtype == labels.dtype
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_anatomy_ratio_is_a_share(ratio):
    with pytest.raises(InputError, match=f"from 0 to 1; got {ratio}"):
        keep_anatomy_ratio(LABELS, ratio, seed=0)
