"""Nearest neighbours against Pillow, and against exact fractions where a centre is on no line."""

import fractions

import numpy as np
import pytest
from PIL import Image

from awcl_jax.data.nearest import nearest, resize_nearest


@pytest.mark.parametrize("old", [1, 2, 3, 10, 64, 192, 256, 257, 480, 540, 800])
@pytest.mark.parametrize("new", [1, 2, 5, 25, 48, 80, 96, 112, 128, 224, 256, 640])
def test_every_row_is_that_in_which_its_centre_lies(old, new):
    centres = [fractions.Fraction(2 * row + 1, 2) * old / new for row in range(new)]
    rows = nearest(old, new)
    for row, centre in zip(rows, centres, strict=True):
        below = centre.denominator == 1 and row == centre - 1  # on the line between two rows, by rounding
        assert row == centre // 1 or below
    picture = Image.fromarray(np.arange(old, dtype=np.int32)[:, None])
    np.testing.assert_array_equal(rows, np.asarray(picture.resize((1, new), Image.Resampling.NEAREST))[:, 0])


@pytest.mark.parametrize("size", [(112, 112), (80, 60), (300, 20), (40, 50)])
def test_a_picture_is_that_of_pillow(size):
    picture = np.random.default_rng(0).integers(0, 4, (40, 50)).astype(np.uint8)
    expected = Image.fromarray(picture).resize(size[::-1], Image.Resampling.NEAREST)
    found = resize_nearest(picture, size)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_rows_that_are_kept_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        nearest(4, 2)[0] = 1
