"""Measure the head circumference in a mask, and its agreement with a reference."""

import math

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from awcl_jax.evaluate.scores import Score, patient_sums, resampled, with_intervals
from awcl_jax.runtime.errors import InputError

_FEWEST_POINTS = 5  # needed to determine an ellipse


def head_circumference(mask: Bool[np.ndarray, "h w"], pixel_mm: Float[np.ndarray, "2"]) -> float:
    """Return the circumference in millimetres of the ellipse fitted to the largest connected part of a mask.

    The ellipse (Fitzgibbon & Fisher 1995, `cv2.fitEllipse`) is fitted to the midpoints between the outermost pixels and
    their neighbours outside, in millimetres, so that pixels need not be square; through the outermost pixels themselves
    it would be short by about pi times a pixel. At the picture's border the part has no outline and no points. The
    circumference, from the semi-axes a and b, is Ramanujan's (1914)

        pi (3 (a + b) - sqrt((3 a + b) (a + 3 b)))

    Args:
      mask: True within the head.
      pixel_mm: height and width of a pixel.

    Returns:
      NaN for a mask without a head to measure: empty, a speck, or a line.
    """
    count, parts, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return math.nan
    largest = 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())
    points = _outline(_filled(parts == largest)) * pixel_mm[::-1]
    if len(points) < _FEWEST_POINTS or np.ptp(points, axis=0).min() <= pixel_mm.max():
        return math.nan
    _, axes, _ = cv2.fitEllipse(points.astype(np.float32))
    b, a = sorted(axis / 2 for axis in axes)
    extent = float(np.hypot(*np.ptp(points, axis=0)))
    # Points on only a part of an ellipse may fit one far larger than their extent, or a line.
    if not (b > 0 and a < 2 * extent):
        return math.nan
    return math.pi * (3 * (a + b) - math.sqrt((3 * a + b) * (a + 3 * b)))


def _filled(part: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Fill the holes of the part."""
    contours, _ = cv2.findContours(part.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(part.shape, np.uint8), contours, -1, 1, cv2.FILLED) != 0


def _outline(part: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "p 2"]:
    """Return (x, y) midway between neighbouring pixels of which only one is in the part."""
    y, x = np.nonzero(part[:, 1:] != part[:, :-1])
    beside = np.stack([x + 0.5, y], axis=1)
    y, x = np.nonzero(part[1:] != part[:-1])
    return np.concatenate([beside, np.stack([x, y + 0.5], axis=1)])


def agreement_scores(
    measured: Float[np.ndarray, " n"],
    reference: Float[np.ndarray, " n"],
    patients: Int[np.ndarray, " n"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Score]:
    """Score the agreement of measurements with a reference, in millimetres, with 95% intervals over patients.

    With the differences d = measured - reference of the frames that have both, and s their standard deviation (n - 1),

        mae = mean |d|,    bias = mean d,    limit_low, limit_high = bias -+ 1.96 s
        unmeasured = share of the frames with a reference but no measurement

    The limits are the limits of agreement, which contain 95% of normal differences (Bland & Altman 1986, Lancet 327).

    Args:
      measured: NaN for no measurement.
      reference: NaN for no reference.
      patients: [n] patient of each frame.
      resamples: draws of the bootstrap.
      seed: of the draws.

    Returns:
      `mae_mm`, `bias_mm`, `limit_low_mm` and `limit_high_mm`, unless fewer than two frames have both; `unmeasured`.

    Raises:
      InputError: no frame has a reference.
    """
    known = ~np.isnan(reference)
    if not known.any():
        raise InputError(f"None of the {len(reference)} frames has a reference to compare a measurement with.")
    missed = np.where(known, np.isnan(measured), np.nan)
    d = measured - reference
    tables = patient_sums(np.stack([np.abs(d), d, d**2, missed], axis=1), patients)
    both, of = ~np.isnan(d), (int(known.sum()), len(np.unique(patients[known])))
    counts = (int(both.sum()), len(np.unique(patients[both])))
    return with_intervals(
        ["mae_mm", "bias_mm", "limit_low_mm", "limit_high_mm", "unmeasured"],
        [counts if counts[0] > 1 else (0, 0)] * 4 + [of],
        _agreement(tables.sum(axis=0)),
        _agreement(resampled(tables, resamples, seed)),
    )


def _agreement(sums: Float[np.ndarray, "*r 2 4"]) -> Float[np.ndarray, "*r 5"]:
    total, n = sums[..., 0, :], sums[..., 1, :]
    absolute, difference, square, missed = np.moveaxis(
        np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0), -1, 0
    )
    n = n[..., 0]
    spread = np.divide(n, n - 1, out=np.full(n.shape, np.nan), where=n > 1) * np.maximum(square - difference**2, 0)
    reach = 1.96 * np.sqrt(spread)
    return np.stack([absolute, difference, difference - reach, difference + reach, missed], axis=-1)
