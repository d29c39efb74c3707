"""Speckle of the phantom against a simulator of wave fields, PyMUST; and what measures it, against closed forms."""

import math

import numpy as np
import pytest

from awcl_jax.ingest.phantom.acoustics import FWHM, gaussian_kernel
from benchmarks import speckle


@pytest.fixture(scope="module")
def referee() -> speckle.Referee:
    pytest.importorskip("pymust")
    return speckle.Referee()


# What measures


def rayleigh(shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal((2, *shape))
    return np.hypot(noise[0], noise[1]) / math.sqrt(2)


def test_the_distance_from_rayleigh_is_that_of_scipy() -> None:
    from scipy import stats

    for level in (rayleigh((40, 30)), np.abs(np.random.default_rng(1).standard_normal((40, 30)))):
        expected = stats.kstest(level.ravel(), stats.rayleigh(scale=math.sqrt(0.5)).cdf).statistic
        assert speckle.rayleigh_distance(level) == pytest.approx(expected, abs=1e-12)


def test_widths_are_those_of_the_kernel_that_made_the_speckle() -> None:
    # A field blurred by a Gaussian of deviation s has the autocorrelation exp(-x^2 / 4 s^2), and its intensity the
    # square of that, which is as wide as the Gaussian; the envelope's is nearly the same.
    rng = np.random.default_rng(0)
    fwhm = 9.0
    field = rng.standard_normal((400, 500)) + 1j * rng.standard_normal((400, 500))
    blurred = np.array([np.convolve(row, gaussian_kernel(fwhm), mode="valid") for row in field])
    assert speckle.correlation_width(np.abs(blurred) ** 2) == pytest.approx(fwhm, rel=0.04)
    assert speckle.correlation_width(np.abs(blurred)) == pytest.approx(fwhm, rel=0.04)
    at = 0.25 * np.arange(80)
    assert speckle.beam_width(np.exp(-0.5 * (at * FWHM / fwhm) ** 2), beam_mm=0.25) == pytest.approx(fwhm, rel=0.01)


# The phantom, where both have a closed form


@pytest.mark.parametrize("depth_mm", speckle.DEPTHS_MM)
def test_speckle_is_rayleigh_and_as_wide_as_the_beam(depth_mm: float) -> None:
    seen = [speckle.phantom_grain(depth_mm, seed=seed) for seed in range(3)]
    assert np.mean([one.snr for one in seen]) == pytest.approx(speckle.RAYLEIGH, rel=0.04)
    assert np.mean([one.ks for one in seen]) < 0.03
    assert np.mean([one.axial_mm for one in seen]) == pytest.approx(speckle.PROBE.axial_fwhm_mm, rel=0.08)
    beam_mm = speckle.PROBE.lateral_fwhm_mm(depth_mm, shown_mm=speckle.SHOWN_MM)
    assert np.mean([one.lateral_mm for one in seen]) == pytest.approx(beam_mm, rel=0.12)


def test_the_display_shows_the_deviation_of_a_logarithm() -> None:
    samples, pixels = speckle.displayed_deviation_db()
    assert samples == pytest.approx(10 / math.log(10) * math.pi / math.sqrt(6), rel=0.03)
    assert pixels < 0.7 * samples, "a pixel averages the samples in it"


# The simulator


@pytest.mark.release
@pytest.mark.parametrize("depth_mm", [25.0, 105.0])
def test_the_simulators_tissue_has_the_same_statistics(referee: speckle.Referee, depth_mm: float) -> None:
    envelope, step_mm, beam_mm = referee.speckle(depth_mm, seed=round(depth_mm), lines=40)
    seen = speckle.grain(envelope, step_mm=step_mm, beam_mm=beam_mm)
    assert seen.snr == pytest.approx(speckle.RAYLEIGH, rel=0.08)
    assert seen.ks < 0.06
    assert seen.axial_mm == pytest.approx(speckle.PROBE.axial_fwhm_mm, rel=0.25)
    assert seen.lateral_mm == pytest.approx(speckle.phantom_grain(depth_mm).lateral_mm, rel=0.35)


@pytest.mark.slow
@pytest.mark.parametrize("depth_mm", speckle.BEAM_DEPTHS_MM)
def test_the_beam_is_as_wide_as_the_simulators(referee: speckle.Referee, depth_mm: float) -> None:
    ours = speckle.PROBE.lateral_fwhm_mm(depth_mm, shown_mm=speckle.SHOWN_MM)
    assert ours == pytest.approx(referee.beam_mm(depth_mm), rel=0.2)
