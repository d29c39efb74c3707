"""Views of a frame. The ramps show where a view looked: a frame whose grey is its column gives back columns."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import ndimage

from awcl_jax.augment.options import PAPER, RECORDED_RANGE, Augmentation, _checked_range
from awcl_jax.augment.views import (
    augment,
    augment_with_masks,
    centre_view,
    two_views,
)
from awcl_jax.runtime.errors import InputError

SIZE = 64
DEFAULT = Augmentation(size=SIZE, speckle_probability=1.0, blur_probability=1.0)


IMPROBABLE: dict[str, Any] = {
    **{"blur": (1.0, 1.0), "speckle": (3.0, 3.0), "shadow": (0.1, 0.2), "corners": (0.1, 0.2), "erase": (0.1, 0.2)},
    **{"jitter_brightness": (1.5, 1.5), "jitter_contrast": (1.5, 1.5)},
}


def only(size: int = SIZE, **on: Any) -> Augmentation:
    """Nothing but these augmentations; grey is not normalised, so that a view is 0 to 1."""
    return dataclasses.replace(Augmentation.off(size=size, mean=0.0, std=1.0), **on)


def frames(b: int, h: int = SIZE, w: int = SIZE, seed: int = 0) -> np.ndarray:
    """Noise, smooth enough that the interpolation of two programs can be compared."""
    noise = np.random.default_rng(seed).random((b, h, w))
    smooth = ndimage.gaussian_filter(noise, (0, 1.5, 1.5))
    low, high = smooth.min(), smooth.max()
    return np.round(10 + 235 * (smooth - low) / (high - low)).astype(np.uint8)


def views(images: np.ndarray, options: Augmentation, *, view: int = 0, step: int = 0, seed: int = 0) -> np.ndarray:
    made = augment(images, rows=np.arange(len(images)), view=view, step=step, seed=seed, options=options)
    return np.asarray(made)[..., 0]


def flat(grey: int, b: int = 8, size: int = SIZE) -> np.ndarray:
    return np.full((b, size, size), grey, np.uint8)


def looked_at(options: Augmentation, *, b: int, h: int = 200, w: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Affine maps [b, 2, 3] from (row, column, 1) of a view to (row, column) of the frame, found by looking at ramps.

    Pixels near the frame's edge, where a ramp is continued or black, are left out of the fit. The second array is the
    share of each view that lies within the frame.
    """
    down, right = np.arange(h, dtype=np.uint8)[:, None], np.arange(w, dtype=np.uint8)[None, :]
    y, x = (255 * views(np.broadcast_to(ramp, (b, h, w)), options) for ramp in (down, right))
    white = views(np.full((b, h, w), 255, np.uint8), options)
    i, j = np.mgrid[: white.shape[1], : white.shape[2]]
    maps = []
    for row in range(b):
        use = (white[row] > 0) & (y[row] > 1) & (y[row] < h - 2) & (x[row] > 1) & (x[row] < w - 2)
        at = np.stack([i[use], j[use], np.ones(use.sum())], 1)
        maps.append(np.linalg.lstsq(at, np.stack([y[row][use], x[row][use]], 1), rcond=None)[0].T)
    return np.stack(maps), white.mean((1, 2))


# -- addresses --


@pytest.mark.parametrize("options", [DEFAULT, pytest.param(PAPER, marks=pytest.mark.slow)], ids=["default", "paper"])
def test_a_row_gets_the_same_view_in_any_batch(options: Augmentation) -> None:
    images, rows = frames(16), np.arange(100, 116)
    whole = np.asarray(augment(images, rows=rows, view=1, step=7, seed=3, options=options))
    for part in ([5], np.arange(8), np.random.default_rng(0).permutation(16)):
        again = augment(images[part], rows=rows[part], view=1, step=7, seed=3, options=options)
        np.testing.assert_array_equal(again, whole[part])


def test_each_part_of_the_address_changes_the_view() -> None:
    images, rows = np.repeat(frames(1), 16, 0), np.arange(16)
    base: dict[str, Any] = {"rows": rows, "view": 0, "step": 2, "seed": 9}
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"rows": rows + 16},
        {"view": 1},
        {"step": 3},
        {"seed": 10},
        {"view": 2, "step": 0},
    )
    seen = [np.asarray(augment(images, **(base | change), options=DEFAULT)) for change in changes]
    distinct = {view.tobytes() for batch in seen for view in batch}
    assert len(distinct) == 6 * 16


def test_two_views_are_views_0_and_1_of_one_frame_or_of_two() -> None:
    first, second, rows = frames(16, seed=1), frames(16, seed=2), np.arange(16)[::-1]
    address: dict[str, Any] = {"rows": rows, "step": 4, "seed": 1, "options": DEFAULT}
    of_one = two_views(first, **address)
    of_two = two_views(np.stack([first, second], 1), **address)
    np.testing.assert_array_equal(of_one[0], augment(first, view=0, **address))
    np.testing.assert_array_equal(of_one[1], augment(first, view=1, **address))
    np.testing.assert_array_equal(of_two[0], of_one[0])
    np.testing.assert_array_equal(of_two[1], augment(second, view=1, **address))


def test_an_augmentation_leaves_the_draws_of_the_others_alone() -> None:
    images = frames(8)
    crop, crop_flip = (views(images, only(crop_area=(0.3, 0.9), flip=flip)) for flip in (0.0, 1.0))
    np.testing.assert_allclose(crop_flip, crop[:, :, ::-1], atol=1e-4)


def test_compiles_once_for_all_steps_views_and_seeds() -> None:
    options, images = only(size=20, flip=0.5), frames(2)
    compiled = augment._cache_size  # type: ignore[attr-defined]
    before = compiled()
    for number in range(3):
        views(images, options, step=number, view=number, seed=number)
    assert compiled() == before + 1


# -- placement --


def test_with_all_off_a_view_is_the_centre_view() -> None:
    images = frames(2, 50, 70)
    zero: dict[str, Any] = {"blur": 0.0, "speckle": 0.0, "shadow": 0.0, "corner": 0.0, "erase": 0.0, "jitter": 0.0}
    unlikely = only(**{f"{name}_probability": value for name, value in zero.items()}, **IMPROBABLE)
    for options in (only(), unlikely):
        still = np.asarray(centre_view(images, options=options))
        np.testing.assert_allclose(views(images, options, step=3), still[..., 0], atol=2e-6)


def test_centre_view_of_equal_size_is_the_normalised_frame() -> None:
    images = frames(2)
    options = Augmentation(size=SIZE, mean=0.3, std=0.4)
    assert centre_view(images, options=options).shape == (2, SIZE, SIZE, 1)
    expected = (images / 255 - 0.3) / 0.4
    np.testing.assert_allclose(centre_view(images, options=options)[..., 0], expected, atol=1e-6)


def test_flip_mirrors_left_and_right() -> None:
    images = frames(4)
    np.testing.assert_array_equal(views(images, only(flip=1.0)), views(images, only())[:, :, ::-1])


def test_flip_has_its_probability() -> None:
    ramp = np.broadcast_to(np.arange(SIZE, dtype=np.uint8), (2000, SIZE, SIZE))
    made = views(ramp, only(size=4, flip=0.3))
    assert (made[:, 0, 0] > made[:, 0, -1]).mean() == pytest.approx(0.3, abs=0.04)  # 4 standard errors


def test_rotation_turns_as_scipy_does() -> None:
    turned, share = looked_at(only(size=128, rotation=40.0), b=8, h=128, w=128)
    angles = np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    assert np.abs(angles).max() < 40
    assert np.ptp(angles) > 20
    assert share.min() < 0.95  # the corners are black
    images = frames(8, 128, 128)
    made = views(images, only(size=128, rotation=40.0))
    for image, angle, view in zip(images, angles, made, strict=True):
        expected = ndimage.rotate(image / 255, -angle, reshape=False, order=1)
        within = np.hypot(*(np.indices((128, 128)) - 63.5)) < 62  # the circle that no turn leaves
        np.testing.assert_allclose(view[within], expected[within], atol=0.002)
        assert view[0, 0] == 0 or abs(angle) < 2


def slow_bilinear(image: np.ndarray, to_frame: np.ndarray, size: int) -> np.ndarray:
    h, w = image.shape
    view = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = to_frame @ (i, j, 1.0)
            if not (-0.5 <= y <= h - 0.5 and -0.5 <= x <= w - 0.5):
                continue
            y, x = min(max(y, 0.0), h - 1.0), min(max(x, 0.0), w - 1.0)
            top, left = min(int(y), h - 2), min(int(x), w - 2)
            for di, wy in ((0, 1 - (y - top)), (1, y - top)):
                for dj, wx in ((0, 1 - (x - left)), (1, x - left)):
                    view[i, j] += wy * wx * image[top + di, left + dj] / 255
    return view


def test_crop_flip_and_rotation_together_are_one_bilinear_map() -> None:
    size = 48
    options = only(size=size, crop_area=(0.02, 0.05), flip=0.5, rotation=30.0)  # small: no halving, spans below 1
    maps, _ = looked_at(options, b=6)
    images = frames(6, 200, 256)
    for image, to_frame, view in zip(images, maps, views(images, options), strict=True):
        wrong = np.abs(view - slow_bilinear(image, to_frame, size)) > 1e-3
        assert wrong.mean() < 0.002  # the map is known to 1e-4, so a pixel on the frame's edge may be black or not


def test_crops_cover_their_ranges_and_stay_inside() -> None:
    h, w, size, b = 200, 256, 16, 600
    maps, share = looked_at(only(size=size, crop_area=(0.2, 1.0), crop_aspect=(0.5, 2.0)), b=b, h=h, w=w)
    assert share.min() == 1.0
    height, width = maps[:, 0, 0] * size / h, maps[:, 1, 1] * size / w
    area, aspect = height * width, width / height
    assert (area > 0.199).all()
    assert (area < 1.001).all()
    assert area.min() < 0.22
    assert area.max() > 0.97
    assert area.mean() == pytest.approx(0.6, abs=4 * 0.8 / math.sqrt(12 * b))  # uniform: mean (0.2 + 1) / 2
    assert (aspect > 0.499).all()
    assert (aspect < 2.001).all()
    assert np.log(aspect).mean() == pytest.approx(0.0, abs=0.06)
    for at, edge in ((maps[:, 0], height), (maps[:, 1], width)):
        assert edge.max() < 1.001
        start = (at[:, 2] + 0.5 - (at[:, 0] + at[:, 1]) / 2) / (h if edge is height else w)
        room = 1 - edge
        assert (start > -5e-3).all()  # one pixel: a ramp that is halved is rounded upwards
        assert (start < room + 5e-3).all()
        far = room > 0.1
        assert (start[far] / room[far]).mean() == pytest.approx(0.5, abs=0.06)


def test_a_frame_much_larger_than_the_view_does_not_alias() -> None:
    # Stripes of one pixel average to grey. Skipping pixels would give stripes of black and white.
    stripes = np.broadcast_to(np.arange(256) % 2 * 255, (1, 256, 256)).astype(np.uint8)
    for size in (30, 64, 100):
        view = np.asarray(centre_view(stripes, options=only(size=size)))
        assert np.abs(view - 0.5).max() < 0.01


@pytest.mark.quick
def test_reducing_is_near_the_average_over_areas() -> None:
    images = frames(1, 256, 256)
    expected = images.reshape(64, 4, 64, 4).mean((1, 3)) / 255
    np.testing.assert_allclose(centre_view(images, options=only())[0, ..., 0], expected, atol=1.5 / 255)


def test_frames_with_odd_edges_keep_their_place() -> None:
    ramp = np.broadcast_to(np.arange(201, dtype=np.uint8), (1, 131, 201))
    view = 255 * np.asarray(centre_view(ramp, options=only(size=40)))[0, :, 1:-1, 0]
    expected = (np.arange(1, 39) + 0.5) * 201 / 40 - 0.5
    np.testing.assert_allclose(view, np.broadcast_to(expected, view.shape), atol=1.0)


# -- grey --


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (only(gamma=(2.0, 2.0)), lambda grey: grey**2),
        (only(brightness=(1.5, 1.5)), lambda grey: np.minimum(1.5 * grey, 1)),
        (only(jitter_probability=1.0, jitter_brightness=(1.4, 1.4)), lambda grey: np.minimum(1.4 * grey, 1)),
        (
            only(jitter_probability=1.0, jitter_contrast=(1.8, 1.8)),
            lambda grey: np.clip(1.8 * grey - 0.8 * grey.mean((1, 2), keepdims=True), 0, 1),
        ),
        # From grey 0.1 on all decibels count: +6 dB of 60 is a tenth of the scale.
        (only(gain=(6.0, 6.0)), lambda grey: np.minimum(grey + np.minimum(grey / 0.1, 1) * 0.1, 1)),
        # 45 dB shown instead of 60: white stays, 45 dB below it is black.
        (
            only(dynamic_range=(45.0, 45.0)),
            lambda grey: grey + np.minimum(grey / 0.1, 1) * (np.maximum(1 + 60 * (grey - 1) / 45, 0) - grey),
        ),
    ],
    ids=["gamma", "brightness", "jitter brightness", "jitter contrast", "gain", "dynamic range"],
)
def test_grey_changes_by_its_formula(options: Augmentation, expected: Callable[[np.ndarray], np.ndarray]) -> None:
    images = frames(3)
    images[0, :4], images[1, :4] = 0, 255
    np.testing.assert_allclose(views(images, options), expected(images / 255), atol=2e-6)


def test_values_are_drawn_over_the_range() -> None:
    gamma = np.log(views(flat(128, b=300, size=8), only(size=8, gamma=(0.5, 1.5)))[:, 0, 0]) / math.log(128 / 255)
    assert 0.5 <= gamma.min() < 0.52
    assert 1.48 < gamma.max() <= 1.5001
    assert gamma.mean() == pytest.approx(1.0, abs=0.07)


def test_attenuation_is_linear_in_decibels_from_top_to_bottom() -> None:
    made = views(flat(128), only(attenuation=(-12.0, -12.0)))
    decibels = RECORDED_RANGE * (made - 128 / 255)
    depth = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    np.testing.assert_allclose(decibels, np.broadcast_to(-12 * depth[:, None], made.shape), atol=1e-4)


def test_black_stays_black_and_everything_stays_in_range() -> None:
    options = dataclasses.replace(DEFAULT, mean=0.0, std=1.0, gain=(20.0, 20.0))
    assert (views(flat(0, b=16), options) == 0).all()
    for images in (flat(255, b=16), frames(16)):
        for chosen in (options, dataclasses.replace(PAPER, mean=0.0, std=1.0)):
            made = views(images, chosen)
            assert np.isfinite(made).all()
            assert made.dtype == np.float32
            assert made.min() >= 0
            assert made.max() <= 1 + 1e-6


def test_speckle_has_its_strength_in_decibels_grain_and_dark_tail() -> None:
    made = views(flat(128, b=24, size=101), only(size=101, speckle=(2.0, 2.0), speckle_probability=1.0))
    noise = RECORDED_RANGE * (made - 128 / 255)
    assert noise.mean() == pytest.approx(0.0, abs=0.05)
    assert noise.std() == pytest.approx(2.0, rel=0.03)
    across = noise.std((0, 2))
    assert across.min() > 1.7  # as strong on every line
    assert across.max() < 2.3
    neighbours = [(noise[:, :, :-lag] * noise[:, :, lag:]).mean() / noise.var() for lag in (1, 6)]
    assert 0.5 < neighbours[0] < 0.95
    assert abs(neighbours[1]) < 0.05
    assert (noise**3).mean() / noise.std() ** 3 < -0.2


def test_speckle_and_blur_have_their_probability() -> None:
    images = np.repeat(frames(1, 16, 16), 400, 0)
    still = np.asarray(centre_view(images, options=only(size=16)))[..., 0]
    for on in ({"speckle": (3.0, 3.0), "speckle_probability": 0.25}, {"blur": (1.0, 1.0), "blur_probability": 0.25}):
        changed = np.abs(views(images, only(size=16, **on)) - still).max((1, 2)) > 1e-3
        assert changed.mean() == pytest.approx(0.25, abs=0.09)


@pytest.mark.parametrize("sigma", [0.5, 1.3])
def test_blur_is_scipys_gaussian_with_black_outside(sigma: float) -> None:
    images = frames(2)
    reach = math.ceil(3 * sigma)
    expected = ndimage.gaussian_filter(images / 255, (0, sigma, sigma), mode="constant", radius=(0, reach, reach))
    made = views(images, only(blur=(sigma, sigma), blur_probability=1.0))
    np.testing.assert_allclose(made, expected, atol=2e-6)


def test_blur_of_a_crop_sees_the_frame_around_it() -> None:
    made = views(flat(200), only(crop_area=(0.2, 0.3), blur=(1.0, 1.0), blur_probability=1.0))
    # No dark border where the crop lies inside the frame.
    assert (np.abs(made - 200 / 255).max((1, 2)) < 1e-6).any()


# -- occlusion --


def test_shadow_takes_its_share_of_the_top_edge_and_fans_out() -> None:
    made = views(flat(255, b=16, size=256), only(size=256, shadow=(0.2, 0.2), shadow_probability=1.0))
    dark = 1 - made
    np.testing.assert_allclose(dark[:, 0].mean(1), 0.2, atol=0.01)
    assert (dark.max((1, 2)) == 1).all()
    # A beam from 0.5 above is three times as far from the middle at the bottom: a central shadow widens to 0.6.
    middle = (dark[:, 0] * (np.arange(256) + 0.5)).sum(1) / dark[:, 0].sum(1) / 256
    central = np.abs(middle - 0.5) < 0.06
    assert central.any()
    np.testing.assert_allclose(dark[central, -1].mean(1), 0.6, atol=0.02)
    assert np.ptp(middle) > 0.3


def test_corners_are_blanked_each_with_its_probability() -> None:
    made = views(flat(255, b=400), only(corners=(0.25, 0.25), corner_probability=0.4))
    q = SIZE // 4
    boxes = [made[:, :q, :q], made[:, :q, -q:], made[:, -q:, :q], made[:, -q:, -q:]]
    for box in boxes:
        assert np.isin(box.mean((1, 2)), (0, 1)).all()
        assert (box == 0).all((1, 2)).mean() == pytest.approx(0.4, abs=0.1)
    blanked = sum((box == 0).sum() for box in boxes)
    assert blanked == (made == 0).sum()


@pytest.mark.quick
def test_erasing_blanks_its_share_as_one_box() -> None:
    made = views(flat(255, b=32, size=200), only(size=200, erase=(0.1, 0.1), erase_probability=1.0))
    np.testing.assert_allclose((made == 0).mean((1, 2)), 0.1, atol=0.006)
    for view in made:
        rows, columns = np.flatnonzero((view == 0).any(1)), np.flatnonzero((view == 0).any(0))
        assert (view == 0).sum() == len(rows) * len(columns)
        assert (np.diff(rows) == 1).all()
        assert (np.diff(columns) == 1).all()


# -- options --


def test_options_come_from_a_config_of_plain_values() -> None:
    config = ConfigDict({**dataclasses.asdict(Augmentation()), "crop_area": [0.5, 1], "rotation": 10, "blur": None})
    options = Augmentation(**config)
    assert options == Augmentation(crop_area=(0.5, 1.0), rotation=10.0, blur=None)
    assert hash(options) == hash(Augmentation(crop_area=(0.5, 1.0), rotation=10.0, blur=None))
    assert isinstance(options.rotation, float)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "size.*at least 1; got 0"),
        ({"crop_area": (0.5, 1.2)}, r"crop_area.*within 0.01 to 1; got \(0.5, 1.2\); None turns it off"),
        ({"crop_area": (0.0, 1.0)}, "crop_area"),
        ({"gain": (6, -6)}, "gain.*wrong order"),
        ({"flip": 1.5}, "flip.*0 to 1; got 1.5"),
        ({"flip": True}, "flip"),
        ({"rotation": math.nan}, "rotation"),
        ({"std": 0.0}, "std"),
    ],
)
def test_wrong_options_are_refused_in_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Augmentation(**wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [1.2, None, "ab", ("a", "b"), (1.0, 1.1, 1.2), (1.0, math.nan)])
def test_what_is_no_range_is_refused(value: object) -> None:
    # Called by itself, as the type checks of these tests stop such a value before an Augmentation does.
    with pytest.raises(
        InputError, match=r"gamma of an augmentation must be a range \(lowest, highest\) within 0.1 to 10"
    ):
        _checked_range("gamma", value, 0.1, 10.0)


def test_frames_that_are_not_uint8_are_refused() -> None:
    with pytest.raises((InputError, TypeError), match=r"uint8|UInt8"):
        centre_view(np.zeros((1, 8, 8), np.float32), options=only())


def test_a_step_may_be_jitted_around_it() -> None:
    images, rows = frames(16), np.arange(16)
    inner = jax.jit(lambda step: augment(images, rows=rows, view=0, step=step, seed=0, options=DEFAULT))(5)
    np.testing.assert_allclose(np.asarray(inner)[..., 0], views(images, DEFAULT, step=5), atol=1e-4)


# Masks --------------------------------------------------------------------------------------------------------------


def test_masks_are_placed_as_their_frames():
    # A frame that is its own mask: what is inside shows white in the view, up to interpolation at the edges.
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 40, 56), np.uint8)
    for mask in masks:
        y, x = rng.integers(5, 20, 2)
        mask[y : y + 14, x : x + 18] = 1
    options = only(32, crop_area=(0.4, 1.0), flip=0.5, rotation=30.0)
    rows = np.arange(6, dtype=np.int32)
    views, placed = augment_with_masks(255 * masks, masks, rows=rows, step=3, seed=1, options=options)
    assert placed.dtype == np.uint8
    assert placed.shape == (6, 32, 32)
    expected = augment(255 * masks, rows=rows, view=0, step=3, seed=1, options=options)
    np.testing.assert_array_equal(views, expected)
    grey = np.asarray(views)[..., 0]
    sure = np.abs(grey - 0.5) > 0.45
    assert sure.mean() > 0.8
    np.testing.assert_array_equal(np.asarray(placed)[sure], grey[sure] > 0.5)
    assert np.asarray(placed).any(axis=(1, 2)).all()
    still = augment_with_masks(255 * masks, masks, rows=rows, step=4, seed=1, options=options)[1]
    assert not np.array_equal(placed, still)


def test_masks_keep_their_classes_and_stay_where_nothing_moves():
    masks = np.random.default_rng(0).choice(np.array([0, 3, 200], np.uint8), (2, 16, 16))
    still = Augmentation.off(size=16)
    _, placed = augment_with_masks(masks, masks, rows=np.arange(2, dtype=np.int32), step=0, seed=0, options=still)
    np.testing.assert_array_equal(placed, masks)
    # Shadow, overlay, speckle and the like change the view and leave the mask.
    grey = Augmentation(size=16, crop_area=None, flip=0.0, rotation=0.0, shadow_probability=1.0, corner_probability=1.0)
    _, placed = augment_with_masks(masks, masks, rows=np.arange(2, dtype=np.int32), step=0, seed=0, options=grey)
    np.testing.assert_array_equal(placed, masks)
    turned = dataclasses.replace(Augmentation.off(size=24), rotation=180.0)
    _, placed = augment_with_masks(masks, masks, rows=np.arange(2, dtype=np.int32), step=0, seed=0, options=turned)
    assert set(np.unique(placed)) == {0, 3, 200}
