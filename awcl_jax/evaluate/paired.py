"""Compare two methods: the difference of their scores on the same frames.

Overlapping intervals of two methods prove little, because both find the same patients hard. The paired bootstrap
(Efron & Tibshirani 1993, ch. 8) draws patients once for both: if the interval of the difference excludes 0, the methods
differ.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from awcl_jax.evaluate.scores import (
    SUMMARIES,
    Score,
    check_classification,
    from_counts,
    means_of,
    patient_counts,
    patient_sums,
    resampled,
    scores_of,
    titled,
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
    one, other = (patient_counts(labels, predicted, patients, len(names)) for predicted in (predictions, others))
    options = {"summaries": len(SUMMARIES), "resamples": resamples, "seed": seed}
    # The same number of patients and the same seed give the same draws.
    (value, drawn), (other_value, other_drawn) = (from_counts(scores_of, counts, **options) for counts in (one, other))
    return with_intervals(*titled(SUMMARIES, ("f1",), names, one), value - other_value, drawn - other_drawn)


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
    # As above.
    drawn, other_drawn = (means_of(resampled(tables, resamples, seed)) for tables in (one, other))
    values_of_all = means_of(one.sum(axis=0)) - means_of(other.sum(axis=0))
    return with_intervals([mean, *names], counts, values_of_all, drawn - other_drawn)
