"""Greys matched to a reference machine, against ranks counted in a loop."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from awcl_jax.augment.options import Augmentation, _checked_greys
from awcl_jax.augment.views import augment
from awcl_jax.runtime.errors import InputError

SIZE = 40
REFERENCE = (0.05, 0.2, 0.3, 0.35, 0.9)


def views(images: np.ndarray, **on: Any) -> np.ndarray:
    on = {"greys": REFERENCE, "greys_probability": 1.0} | on
    options = dataclasses.replace(Augmentation.off(size=SIZE, mean=0.0, std=1.0), **on)
    made = augment(images, rows=np.arange(len(images)), view=0, step=0, seed=0, options=options)
    return np.asarray(made, np.float64)[..., 0]


def frames(b: int) -> np.ndarray:
    """Speckle, with a black corner."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 90, (b, SIZE, SIZE)), (0, 1, 1))
    images = np.clip(90 + noise, 1, 255).astype(np.uint8)
    images[:, :10, :10] = 0
    return images


def slow_match(image: np.ndarray) -> np.ndarray:
    seen = [int(grey) for grey in image.ravel() if grey]
    out = np.zeros(image.shape)
    for (i, j), grey in np.ndenumerate(image):
        if not grey:
            continue
        rank = (sum(other < grey for other in seen) + sum(other == grey for other in seen) / 2) / len(seen)
        below = min(math.floor(4 * rank), 3)
        share = 4 * rank - below
        out[i, j] = (1 - share) * REFERENCE[below] + share * REFERENCE[below + 1]
    return out


def test_greys_have_the_ranks_of_the_reference():
    images = frames(2)
    np.testing.assert_allclose(views(images), [slow_match(image) for image in images], atol=1e-5)


def test_the_distribution_becomes_that_of_the_reference():
    for view in views(frames(4)):
        found = np.quantile(view[view > 0], [0.25, 0.5, 0.75])
        np.testing.assert_allclose(found, REFERENCE[1:4], atol=0.02)


def test_a_darker_machine_gives_the_same_view():
    images = frames(3)
    darker = np.where(images > 0, 1 + images // 2, 0).astype(np.uint8)
    np.testing.assert_allclose(views(darker), views(images), atol=0.03)
    assert np.abs(views(darker, greys_probability=0.0) - views(images, greys_probability=0.0)).max() > 0.2


def test_black_stays_black_and_no_view_depends_on_its_batch():
    images = frames(8)
    images[3] = 0
    whole = views(images)
    assert (whole[:, :10, :10] == 0).all()
    assert (whole[3] == 0).all()
    options = dataclasses.replace(
        Augmentation.off(size=SIZE, mean=0.0, std=1.0), greys=REFERENCE, greys_probability=1.0
    )
    rows = np.array([6, 1])
    part = augment(images[rows], rows=rows, view=0, step=0, seed=0, options=options)
    np.testing.assert_array_equal(np.asarray(part)[..., 0], whole[rows].astype(np.float32))


def test_it_has_its_probability_and_is_off_by_default():
    images = np.repeat(frames(1), 400, 0)
    still = views(images, greys=None)
    np.testing.assert_array_equal(views(images, greys_probability=0.0), still)
    changed = (np.abs(views(images, greys_probability=0.25) - still) > 1e-3).any((1, 2))
    assert changed.mean() == pytest.approx(0.25, abs=0.09)  # 4 standard errors


def test_a_list_of_whole_numbers_is_a_reference():
    assert Augmentation(greys=[0, 1]).greys == (0.0, 1.0)
    assert hash(Augmentation(greys=[0, 1])) == hash(Augmentation(greys=(0.0, 1.0)))


@pytest.mark.parametrize("value", [0.5, (), (0.3,), (0.3, 0.2), (0.0, 1.2), ("a", "b"), (0.0, math.nan), (0.5,) * 257])
def test_what_is_no_reference_is_refused(value: object):
    # Called by itself, as the type checks of these tests stop such a value before an Augmentation does.
    with pytest.raises(InputError, match=r"greys of an augmentation must be 2 to 256 numbers .* ascending") as error:
        _checked_greys(value)
    assert "\n" not in str(error.value)
