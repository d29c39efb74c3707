"""The shape of a fan, against fans that are drawn from known ones and those that were drawn by eye."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from awcl_jax.data.fan import Fan, fit_fan, read_fans
from tests.helpers.outlines import OUTLINES, fill


def draw_fan(fan: Fan, size: tuple[int, int]) -> np.ndarray:
    """The convex sector of a fan, straight over the face, from its definition."""
    rows, columns = np.indices(size)
    x, z = columns - fan.apex_x, rows - fan.apex_y
    angle = np.degrees(np.arctan2(x, z))
    face = max(fan.inner * math.cos(math.radians(side)) for side in (fan.left, fan.right))
    return (angle >= fan.left) & (angle <= fan.right) & (np.hypot(x, z) <= fan.outer) & (z >= face)


@pytest.mark.parametrize(
    "fan",
    [
        Fan(200, -60, -31.5, 31.5, 90, 330),
        Fan(200, 20, -42, 42, 8, 220),
        Fan(180, -40, -25, 35, 70, 300),
        Fan(200, -200, -14, 14, 230, 470),
    ],
    ids=["curved", "phased", "steered", "narrow"],
)
def test_a_fan_is_found_as_it_was_drawn(fan):
    found = fit_fan(draw_fan(fan, (300, 400)))
    assert (found.left, found.right) == pytest.approx((fan.left, fan.right), abs=0.5)
    assert (found.apex_x, found.apex_y) == pytest.approx((fan.apex_x, fan.apex_y), abs=3)
    assert found.outer == pytest.approx(fan.outer, abs=3)
    # The face begins on one row, so that of two angles one side begins where it was drawn.
    assert found.inner == pytest.approx(fan.inner, abs=4 if fan.left == -fan.right else 10)


def test_what_the_border_cuts_off_is_not_told():
    fan = Fan(200, -60, -31.5, 31.5, 90, 330)
    above = fit_fan(draw_fan(fan, (300, 400))[40:])
    assert above.inner is None
    assert above.outer == pytest.approx(330, abs=3)
    below = fit_fan(draw_fan(fan, (200, 400)))
    assert below.outer is None
    assert below.inner == pytest.approx(90, abs=4)


def test_the_arc_of_a_frame_made_square_has_no_radius():
    fan = draw_fan(Fan(200, -60, -31.5, 31.5, 90, 330), (300, 400))
    found = fit_fan(fan.repeat(2, axis=0))
    assert found.outer is None
    assert found.left == pytest.approx(-math.degrees(math.atan(math.tan(math.radians(31.5)) / 2)), abs=0.5)


@pytest.mark.parametrize("edge", [(20, 180, 40, 230), (0, 200, 0, 260), (5, 6, 5, 6)])
def test_a_rectangle_is_no_fan(edge):
    sector = np.zeros((200, 260), bool)
    sector[edge[0] : edge[1], edge[2] : edge[3]] = True
    assert fit_fan(sector) is None
    assert fit_fan(np.zeros_like(sector)) is None


def test_clips_that_were_drawn_by_eye():
    """The sides as two corners of each outline give them."""
    outlines = json.loads(OUTLINES.read_text())["clips"]
    # Of 370 x 370 pixels: from (100, 0) to (0, 185), and from (270, 0) to (370, 182).
    found = fit_fan(fill(outlines["Reg_pat1Image_133043.mpeg"], (370, 370)))
    left, right = -math.degrees(math.atan(100 / 185)), math.degrees(math.atan(100 / 182))
    assert (found.left, found.right) == pytest.approx((left, right), abs=0.5)
    assert found.inner is None
    for name, size in (("Reg_Image_18122_crop.mp4", 208), ("Pneu_prospective_file3.mp4", 260)):
        assert fit_fan(fill(outlines[name], (size, size))) is None


def test_a_dataset_from_before_has_no_fans(phantom: Path):
    assert read_fans(phantom) == {}
