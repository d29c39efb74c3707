"""Shadow, attenuation and haze along the beams of a frame's fan.

The oracles are a loop over pixels in float64, and frames whose grey says where each pixel lies in the fan.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from awcl_jax.augment.draws import draw_all, keys_of
from awcl_jax.augment.options import Augmentation
from awcl_jax.augment.views import augment, augment_with_masks, two_views
from awcl_jax.data.beams import UNKNOWN, in_square
from awcl_jax.data.fan import Fan
from awcl_jax.data.square import ASPECTS, resize_frame
from awcl_jax.runtime.errors import InputError

SIZE, FRAME, B = 40, 96, 6
PLACED: dict[str, Any] = {"crop_area": (0.3, 1.0), "crop_aspect": (0.75, 4 / 3), "flip": 0.5, "rotation": 30.0}
ALL: dict[str, Any] = {
    **{"attenuation": (-12.0, 12.0), "shadow": (0.1, 0.3), "shadow_probability": 1.0},
    **{"haze": (-30.0, -20.0), "haze_probability": 1.0},
}


def only(**on: Any) -> Augmentation:
    return dataclasses.replace(Augmentation.off(size=SIZE, mean=0.0, std=1.0), **on)


def views(images: np.ndarray, fans: np.ndarray | None, options: Augmentation, rows: Any = None) -> np.ndarray:
    rows = np.arange(len(images)) if rows is None else rows
    made = augment(images, rows=rows, view=0, step=2, seed=1, options=options, fans=fans)
    return np.asarray(made)[..., 0]


def some_fans(b: int = B) -> np.ndarray:
    """Fans of square frames, some of which are squashed, above, at the edge of, and within the frame."""
    rng = np.random.default_rng(3)
    apex = np.stack([rng.uniform(-60, 15, b), rng.uniform(30, 66, b)], 1)
    sides = np.stack([rng.uniform(-0.8, -0.3, b), rng.uniform(0.2, 0.7, b)], 1)
    return np.concatenate([apex, rng.uniform(0.8, 2.5, (b, 2)), sides], 1).astype(np.float32)


def draws_of(row: int) -> dict[str, float]:
    return {name: float(value) for name, value in draw_all(keys_of(1, 2, jnp.array([row]), 0)[0]).items()}


def slow_view(grey: float, fan: np.ndarray, draws: dict[str, float]) -> np.ndarray:
    """The view of a flat frame with `PLACED` and `ALL`; NaN within a pixel of the frame's edge."""
    apex_y, apex_x, per_y, per_x, left, right = (float(number) for number in fan)
    area = 0.3 + 0.7 * draws["crop_area"]
    narrowest, widest = max(math.log(0.75), math.log(area)), min(math.log(4 / 3), -math.log(area))
    aspect = math.exp(narrowest + (widest - narrowest) * draws["crop_aspect"])
    height, width = math.sqrt(area / aspect), math.sqrt(area * aspect)
    mid_y = FRAME * (height / 2 + (1 - height) * draws["crop_y"])
    mid_x = FRAME * (width / 2 + (1 - width) * draws["crop_x"])
    turn = math.radians(30) * (2 * draws["rotation"] - 1)
    flipped = draws["flip"] < 0.5

    def place(i: float, j: float) -> tuple[float, float]:
        """Pixels of the frame of a point of the view, from 0 to 1."""
        down, along = (i - 0.5) * height * FRAME, (0.5 - j if flipped else j - 0.5) * width * FRAME
        return (
            mid_y + math.cos(turn) * down - math.sin(turn) * along,
            mid_x + math.sin(turn) * down + math.cos(turn) * along,
        )

    def stored(point: tuple[float, float]) -> tuple[float, float]:
        return (point[0] - apex_y) * per_y, (point[1] - apex_x) * per_x

    top, bottom = stored(place(0, 0.5)), stored(place(1, 0.5))
    tall = math.dist(top, bottom)
    middle = math.hypot(*stored(place(0.5, 0.5)))
    shadow_width = 0.1 + 0.2 * draws["shadow"]
    shadow_middle = shadow_width / 2 + (1 - shadow_width) * draws["shadow_x"]
    view = np.zeros((SIZE, SIZE))
    for i in range(SIZE):
        for j in range(SIZE):
            y, x = place((i + 0.5) / SIZE, (j + 0.5) / SIZE)
            if min(y, x, FRAME - y, FRAME - x) < 0:
                view[i, j] = np.nan if min(y, x, FRAME - y, FRAME - x) > -1e-3 else 0
                continue
            down, across = stored((y, x))
            depth = (math.hypot(down, across) - middle) / tall
            haze = (-30 + 10 * draws["haze"]) / 10 * math.log(10)
            haze -= ((depth - draws["haze_depth"] + 0.5) / (0.03 + 0.09 * draws["haze_width"])) ** 2 / 2
            value = 1 + 10 * math.log10(10 ** (6 * (grey - 1)) + math.exp(haze)) / 60
            value += (-12 + 24 * draws["attenuation"]) * depth / 60
            beam = (math.atan2(across, down) - left) / (right - left)
            dark = (shadow_width / 2 - abs(beam - shadow_middle)) / (0.15 * shadow_width) + 0.5
            view[i, j] = min(max(value, 0), 1) * (1 - min(max(dark, 0), 1))
    return view


def test_views_follow_the_fan_as_a_slow_loop_does():
    flat = np.full((B, FRAME, FRAME), 128, np.uint8)
    fans = some_fans()
    made = views(flat, fans, only(**PLACED, **ALL, beams="fan"))
    for row in range(B):
        expected = slow_view(128 / 255, fans[row], draws_of(row))
        sure = np.isfinite(expected)
        assert sure.mean() > 0.99
        np.testing.assert_allclose(made[row][sure], expected[sure], atol=2e-4)
    assert (made == 0).any()
    assert made.std((1, 2)).min() > 0.02


FAN = Fan(apex_x=120.0, apex_y=-30.0, left=-35.0, right=25.0, inner=60.0, outer=230.0)


def drawn(shape: tuple[int, int], what: str) -> np.ndarray:
    """A frame whose grey goes from 55 to 200 with the angle, or with the radius, of `FAN`."""
    y, x = np.indices(shape)
    down, across = y - FAN.apex_y, x - FAN.apex_x
    share = (np.degrees(np.arctan2(across, down)) + 35) / 60 if what == "angle" else np.hypot(down, across) / 300
    return np.clip(55 + 145 * share, 0, 255).round().astype(np.uint8)


def away_from_black(clear: np.ndarray) -> np.ndarray:
    """Where grey is not mixed with that of bars, or of the outside of the frame."""
    return ndimage.binary_erosion(clear > 54 / 255, np.ones((1, 5, 5)))


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("shape", [(200, 260), (240, 180)])
def test_a_shadow_covers_a_range_of_the_frames_own_angles(shape: tuple[int, int], aspect: str):
    # The grey of a view without shadow is the angle in the frame as stored, however that was placed and made square.
    image = np.broadcast_to(resize_frame(drawn(shape, "angle"), 128, aspect=aspect), (B, 128, 128))
    fans = np.broadcast_to(in_square(FAN, shape, 128, aspect), (B, 6))
    shadow: dict[str, Any] = {"shadow": (0.3, 0.3), "shadow_probability": 1.0}
    clear = views(image, fans, only(**PLACED))
    dark = views(image, fans, only(**PLACED, **shadow, beams="fan"))
    beam = (255 * clear - 55) / 145
    seen = away_from_black(clear) & (beam > 0.02) & (beam < 0.98)
    for row in range(B):
        middle = 0.15 + 0.7 * draws_of(row)["shadow_x"]
        expected = 1 - np.clip((0.15 - np.abs(beam[row] - middle)) / (0.15 * 0.3) + 0.5, 0, 1)
        share = (dark[row] / np.maximum(clear[row], 1e-6))[seen[row]]
        # A grey is 0.007 of the fan's angles, and a shadow fades within 0.045 of them.
        assert np.quantile(np.abs(share - expected[seen[row]]), 0.98) < 0.12


@pytest.mark.parametrize("aspect", ASPECTS)
def test_attenuation_is_linear_in_the_radius(aspect: str):
    image = np.broadcast_to(resize_frame(drawn((200, 260), "radius"), 128, aspect=aspect), (B, 128, 128))
    fans = np.broadcast_to(in_square(FAN, (200, 260), 128, aspect), (B, 6))
    clear = views(image, fans, only(**PLACED))
    made = views(image, fans, only(**PLACED, attenuation=(-12.0, -12.0), beams="fan"))
    fixed = views(image, fans, only(**PLACED, attenuation=(-12.0, -12.0)))
    for row in range(B):
        seen = away_from_black(clear)[row] & (made[row] < 1)
        left_over = []
        for view in (made, fixed):
            line = np.polyfit(clear[row][seen], (view - clear)[row][seen], 1)
            left_over.append(np.abs(np.polyval(line, clear[row][seen]) - (view - clear)[row][seen]).max())
            assert line[0] < 0
        assert left_over[0] < 0.004
        assert left_over[0] < left_over[1] / 3


def test_frames_without_a_fan_have_fixed_beams_row_by_row():
    images = np.random.default_rng(0).integers(30, 255, (B, FRAME, FRAME), np.uint8)
    fans = some_fans()
    fans[1::2] = UNKNOWN
    fixed, of_fan = (views(images, fans, only(**PLACED, **ALL, beams=beams)) for beams in ("fixed", "fan"))
    np.testing.assert_allclose(of_fan[1::2], fixed[1::2], atol=5e-6)
    assert (np.abs(of_fan[::2] - fixed[::2]).max((1, 2)) > 0.1).all()
    assert np.isfinite(of_fan).all()


def test_a_row_gets_the_same_view_in_any_batch_and_of_any_call():
    images = np.random.default_rng(0).integers(0, 255, (8, FRAME, FRAME), np.uint8)
    fans, options, rows = some_fans(8), only(**PLACED, **ALL, beams="fan"), np.arange(8)
    whole = views(images, fans, options)
    part = np.array([6, 2, 3])
    np.testing.assert_array_equal(views(images[part], fans[part], options, rows=part), whole[part])
    address: dict[str, Any] = {"rows": rows, "step": 2, "seed": 1, "options": options}
    one = two_views(images, **address, fans=fans)
    np.testing.assert_array_equal(np.asarray(one)[0, ..., 0], whole)
    other = np.roll(fans, 1, 0)
    two = two_views(np.stack([images, images], 1), **address, fans=np.stack([fans, other], 1))
    np.testing.assert_array_equal(two[0], one[0])
    np.testing.assert_array_equal(two[1], augment(images, view=1, **address, fans=other))
    masked, _ = augment_with_masks(images, images, **address, fans=fans)
    np.testing.assert_array_equal(masked, one[0])


def test_black_stays_black():
    black = np.zeros((B, FRAME, FRAME), np.uint8)
    assert (views(black, some_fans(), only(**PLACED, **ALL, beams="fan")) == 0).all()


def test_fixed_beams_need_no_fan_and_do_not_look_at_one():
    images = np.random.default_rng(0).integers(0, 255, (B, FRAME, FRAME), np.uint8)
    options = only(**PLACED, **ALL)
    np.testing.assert_array_equal(views(images, some_fans(), options), views(images, None, options))


def test_missing_fans_and_unknown_beams_are_refused_in_one_line():
    with pytest.raises(InputError, match=r"needs the fans of the frames.*FrameReader\.fans"):
        views(np.zeros((1, 8, 8), np.uint8), None, only(beams="fan"))
    with pytest.raises(InputError, match=r"beams of an augmentation must be fixed or fan; got 'true'\."):
        Augmentation(beams="true")
