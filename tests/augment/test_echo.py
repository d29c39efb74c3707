"""Haze and the speckle filter, against loops over pixels in float64."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest
from scipy import ndimage

from awcl_jax.augment.draws import DRAWS
from awcl_jax.augment.options import Augmentation
from awcl_jax.augment.views import augment
from awcl_jax.runtime.errors import InputError

SIZE = 48
HAZE: dict[str, Any] = {"haze": (-50.0, -20.0), "haze_probability": 1.0}
DESPECKLE: dict[str, Any] = {"despeckle": (1.0, 6.0), "despeckle_probability": 1.0}


def only(**on: Any) -> Augmentation:
    """Nothing but these augmentations; grey is not normalised, so that a view is 0 to 1."""
    return dataclasses.replace(Augmentation.off(size=SIZE, mean=0.0, std=1.0), **on)


def views(images: np.ndarray, *, seed: int = 0, **on: Any) -> np.ndarray:
    made = augment(images, rows=np.arange(len(images)), view=0, step=0, seed=seed, options=only(**on))
    return np.asarray(made, np.float64)[..., 0]


def frames(b: int, seed: int = 0) -> np.ndarray:
    """Speckle on steps of grey, with a black corner."""
    rng = np.random.default_rng(seed)
    steps = np.kron(rng.integers(0, 220, (b, 3, 3)), np.ones((1, SIZE // 3, SIZE // 3)))
    images = np.clip(steps + ndimage.gaussian_filter(rng.normal(0, 40, steps.shape), (0, 1, 1)), 0, 255)
    images[:, :10, :10] = 0
    return images.astype(np.uint8)


def slow_haze(grey: np.ndarray, level: float, middle: float, width: float) -> np.ndarray:
    out = np.zeros_like(grey)
    for (i, j), value in np.ndenumerate(grey):
        depth = (i + 0.5) / SIZE - 0.5
        haze = 10 ** (level / 10) * math.exp(-((depth - middle) ** 2) / (2 * width**2))
        decibels = 10 * math.log10(10 ** (60 * (value - 1) / 10) + haze)
        out[i, j] = value + min(value / 0.1, 1) * (min(1 + decibels / 60, 1) - value)
    return out


def slow_lee(grey: np.ndarray, deviation: float) -> np.ndarray:
    out = np.zeros_like(grey)
    for (i, j), value in np.ndenumerate(grey):
        window = grey[max(i - 2, 0) : i + 3, max(j - 2, 0) : j + 3]
        noise = (deviation / 60) ** 2
        signal = max(window.var() - noise, 0)
        smooth = window.mean() + signal / (signal + noise) * (value - window.mean())
        out[i, j] = value + min(value / 0.1, 1) * (smooth - value)
    return out


def haze_of(made: np.ndarray) -> np.ndarray:
    """The power of the haze relative to white, from its view of a flat frame of grey 0.2."""
    return 10 ** (6 * (made - 1)) - 10 ** (6 * (51 / 255 - 1))


def test_haze_adds_its_power_at_one_depth():
    # What was drawn shows on a flat frame: the logarithm of the haze's power is a parabola in depth.
    flat = np.full((6, SIZE, SIZE), 51, np.uint8)
    images = frames(6)
    depth = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    drawn = []
    for image, view, of_flat in zip(images, views(images, **HAZE), views(flat, **HAZE), strict=True):
        assert np.ptp(of_flat, axis=1).max() < 1e-6, "alike along a row"
        power = haze_of(of_flat).mean(1)
        seen = power > 0.01 * power.max()
        square, linear, constant = np.polyfit(depth[seen], np.log(power[seen]), 2)
        width, middle = math.sqrt(-1 / (2 * square)), -linear / (2 * square)
        level = (constant - linear**2 / (4 * square)) * 10 / math.log(10)
        np.testing.assert_allclose(view, slow_haze(image / 255, level, middle, width), atol=2e-4)
        drawn.append((level, middle, width))
    level, middle, width = np.array(drawn).T
    assert ((level > -50) & (level < -20)).all()
    assert ((width > 0.03) & (width < 0.12)).all()
    assert (np.abs(middle) < 0.5).all()
    assert min(np.ptp(level) / 30, np.ptp(middle), np.ptp(width) / 0.09) > 0.3, "each is drawn"


def test_haze_of_equal_power_adds_three_decibels():
    # Grey 0.5 is 30 dB below white; with as much haze the power is twice as high: 3.01 dB, a twentieth of 60.
    flat = np.full((16, SIZE, SIZE), 127.5, np.uint8)
    made = views(flat, haze=(-60 * 128 / 255, -60 * 128 / 255), haze_probability=1.0)
    np.testing.assert_allclose(made.max((1, 2)), 127 / 255 + 10 * math.log10(2) / 60, atol=2e-3)


def test_the_speckle_filter_is_lees():
    images = frames(4)
    for deviation in (0.5, 2.0, 6.0):
        made = views(images, despeckle=(deviation, deviation), despeckle_probability=1.0)
        for image, view in zip(images, made, strict=True):
            np.testing.assert_allclose(view, slow_lee(image / 255, deviation), atol=2e-4)


def test_the_speckle_filter_smooths_noise_and_leaves_an_edge():
    # 60 dB over 255 greys: noise of 2 dB has a deviation of 8.5 greys; the step of 120 greys is 28 dB.
    clean = np.where(np.arange(SIZE) < SIZE // 2, 60, 180) * np.ones((8, SIZE, 1))
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 8.5, clean.shape), 0, 255).astype(np.uint8)
    made = 255 * views(noisy, despeckle=(2.2, 2.2), despeckle_probability=1.0)
    away = np.abs(np.arange(SIZE) - SIZE // 2 + 0.5) > 3
    assert (made - clean)[:, :, away].std() < 0.5 * (noisy - clean)[:, :, away].std()
    assert np.diff(made.mean((0, 1)))[SIZE // 2 - 1] > 100


@pytest.mark.parametrize("on", [HAZE, DESPECKLE], ids=["haze", "despeckle"])
def test_black_stays_black_and_no_view_depends_on_its_batch(on: dict[str, Any]):
    images = frames(16)
    whole = views(images, **on)
    assert (whole[:, :8, :8] == 0).all(), "also where a window reaches what is not black"
    assert (whole >= 0).all()
    assert (whole <= 1).all()
    rows = np.array([3, 9, 5])
    part = augment(images[rows], rows=rows, view=0, step=0, seed=0, options=only(**on))
    np.testing.assert_array_equal(np.asarray(part)[..., 0], whole[rows].astype(np.float32))


@pytest.mark.parametrize("name", ["haze", "despeckle"])
def test_each_has_its_probability(name: str):
    images = np.repeat(frames(1), 400, 0)
    on: dict[str, Any] = {name: (HAZE | DESPECKLE)[name]}
    still = views(images)
    np.testing.assert_array_equal(views(images, **on), still, "by default it is off")
    changed = (np.abs(views(images, **on, **{f"{name}_probability": 0.25}) - still) > 1e-4).any((1, 2))
    assert changed.mean() == pytest.approx(0.25, abs=0.09)  # 4 standard errors


def test_draws_of_earlier_versions_keep_their_places():
    # 32 numbers were drawn before there was haze. More of them leave the first as they are.
    assert (DRAWS.index("crop_area"), DRAWS.index("speckle"), DRAWS.index("erase_x")) == (0, 8, 31)
    key = jax.random.key(5)
    more = jax.random.uniform(key, (len(DRAWS),))
    np.testing.assert_array_equal(more[:32], jax.random.uniform(key, (32,)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"haze": (-40.0, 3.0)}, r"haze.*within -60 to 0; got \(-40.0, 3.0\); None turns it off"),
        ({"haze_probability": 1.5}, "haze_probability.*0 to 1; got 1.5"),
        ({"despeckle": (0.0, 3.0)}, r"despeckle.*within 0.1 to 30; got \(0.0, 3.0\); None turns it off"),
        ({"despeckle_probability": -1}, "despeckle_probability.*0 to 1; got -1"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        Augmentation(**wrong)
