"""Compare two methods: the difference of their scores on the same frames.

Overlapping intervals of two methods prove little, because both find the same patients hard. The paired bootstrap
(Efron & Tibshirani 1993, ch. 8) draws patients once for both: if the interval of the difference excludes 0, the methods
differ.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from awcl_jax.evaluate.scores import (
    SUMMARIES,
    Score,
    check_classification,
    means_of,
    patient_confusions,
    patient_sums,
    resampled,
    scores_of,
    with_intervals,
)
from awcl_jax.runtime.errors import InputError


def classification_differences(
    labels: Int[np.ndarray, " n"],
    predictions: Int[np.ndarray, " n"],
    others: Int[np.ndarray, " n"],
    patients: Int[np.ndarray, " n"],
    *,
    names: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> list[Score]:
    """Return scores of `predictions` minus those of `others`, with 95% intervals over patients drawn once for both.

    Args:
      labels: [n] true anatomy of each frame.
      predictions: [n] anatomy by one method.
      others: [n] anatomy by the other.
      patients: [n] patient of each frame.
      names: the anatomies.
      resamples: draws of the bootstrap.
      seed: of the draws.

    Returns:
      As `scores.classification_scores`; above 0 if `predictions` are better.

    Raises:
      InputError: as `scores.classification_scores`.
    """
    for predicted in (predictions, others):
        check_classification(labels, predicted, patients, names)
    one, other = (patient_confusions(labels, predicted, patients, len(names)) for predicted in (predictions, others))
    frames = one.sum(axis=2)
    counts = [(len(labels), len(frames))] * len(SUMMARIES)
    counts += [(int(column.sum()), int(np.count_nonzero(column))) for column in frames.T]
    titles = [*SUMMARIES, *(f"f1/{name}" for name in names)]
    return _differences(titles, counts, scores_of, one, other, resamples, seed)


def mean_differences(
    values: Float[np.ndarray, "n c"],
    others: Float[np.ndarray, "n c"],
    patients: Int[np.ndarray, " n"],
    *,
    names: Sequence[str],
    mean: str,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Score]:
    """Return means over frames of `values` (such as Dice) minus those of `others`, with intervals drawn once for both.

    Args:
      values: c measurements of each frame by one method, NaN where a frame does not count.
      others: by the other method, of the same frames.
      patients: [n] patient of each frame.
      names: of the measurements.
      mean: name of the mean over them.
      resamples: draws of the bootstrap.
      seed: of the draws.

    Returns:
      As `scores.mean_scores`.

    Raises:
      InputError: the two methods count different frames, or none.
    """
    counted = ~np.isnan(values)
    if values.shape != others.shape or (counted != ~np.isnan(others)).any():
        raise InputError("Two methods must be compared on the same frames; these were measured on different frames.")
    if not counted.any():
        raise InputError(f"None of these {len(values)} frames has any of {', '.join(names)}.")
    some = counted.any(axis=1)
    counts = [(int(some.sum()), len(np.unique(patients[some])))]
    counts += [(int(column.sum()), len(np.unique(patients[column]))) for column in counted.T]
    one, other = (patient_sums(measured, patients) for measured in (values, others))
    return _differences([mean, *names], counts, means_of, one, other, resamples, seed)


def _differences(
    titles: Sequence[str],
    counts: Sequence[tuple[int, int]],
    statistic: Callable[[np.ndarray], np.ndarray],
    one: Shaped[np.ndarray, "p ..."],
    other: Shaped[np.ndarray, "p ..."],
    resamples: int,
    seed: int,
) -> list[Score]:
    # The same number of patients and the same seed give the same draws.
    drawn, other_drawn = (statistic(resampled(tables, resamples, seed)) for tables in (one, other))
    values = statistic(one.sum(axis=0)) - statistic(other.sum(axis=0))
    return with_intervals(titles, counts, values, drawn - other_drawn)
