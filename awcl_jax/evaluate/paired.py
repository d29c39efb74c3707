"""Compare two methods: the difference of their scores on the same frames.

Overlapping intervals of two methods prove little, because both find the same patients hard. The paired bootstrap
(Efron & Tibshirani 1993, ch. 8) draws patients once for both: if the interval of the difference excludes 0, the methods
differ.

A method is more than one run of it. Where several seeds of both were scored on the same patients, seeds and patients
are drawn independently of each other (the pigeonhole bootstrap: Owen 2007, "The pigeonhole bootstrap", Annals of
Applied Statistics 1(2)), so that the interval includes what another seed would change. With few seeds it is a rough
one: two have only three different draws.
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
    predictions: Int[np.ndarray, "*s n"],
    others: Int[np.ndarray, "*s n"],
    patients: Int[np.ndarray, " n"],
    *,
    names: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> list[Score]:
    """Return scores of `predictions` minus those of `others`, with 95% intervals over patients drawn once for both.

    Args:
      labels: [n] true anatomy of each frame.
      predictions: [n] anatomy by one method, or [s, n] by its s seeds.
      others: by the other method, with the same seeds.
      patients: [n] patient of each frame.
      names: the anatomies.
      resamples: draws of the bootstrap.
      seed: of the draws.

    Returns:
      As `scores.classification_scores`; above 0 if `predictions` are better. Of several seeds, the mean over them.

    Raises:
      InputError: as `scores.classification_scores`.
    """
    pairs = list(zip(np.atleast_2d(predictions), np.atleast_2d(others), strict=True))
    values, draws = [], []
    for pair in pairs:
        for predicted in pair:
            check_classification(labels, predicted, patients, names)
        one, other = (patient_counts(labels, predicted, patients, len(names)) for predicted in pair)
        options = {"summaries": len(SUMMARIES), "resamples": resamples, "seed": seed}
        # The same number of patients and the same seed give the same draws.
        (value, drawn), (other_value, other_drawn) = (from_counts(scores_of, c, **options) for c in (one, other))
        values.append(value - other_value)
        draws.append(drawn - other_drawn)
    return with_intervals(*titled(SUMMARIES, ("f1",), names, one), *_over_seeds(values, draws, seed))


def mean_differences(
    values: Float[np.ndarray, "*s n c"],
    others: Float[np.ndarray, "*s n c"],
    patients: Int[np.ndarray, " n"],
    *,
    names: Sequence[str],
    mean: str,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Score]:
    """Return means over frames of `values` (such as Dice) minus those of `others`, with intervals drawn once for both.

    Args:
      values: c measurements of each frame by one method, or by its s seeds; NaN where a frame does not count.
      others: by the other method, of the same frames, with the same seeds.
      patients: [n] patient of each frame.
      names: of the measurements.
      mean: name of the mean over them.
      resamples: draws of the bootstrap.
      seed: of the draws.

    Returns:
      As `scores.mean_scores`. Of several seeds, the mean over them.

    Raises:
      InputError: the two methods, or two seeds, count different frames, or none.
    """
    columns = values.shape[-1]
    by_seed, others_by_seed = (array.reshape(-1, len(patients), columns) for array in (values, others))
    counted = ~np.isnan(by_seed[0])
    if values.shape != others.shape or any((counted != ~np.isnan(array)).any() for array in (by_seed, others_by_seed)):
        raise InputError("Two methods must be compared on the same frames; these were measured on different frames.")
    if not counted.any():
        raise InputError(f"None of these {len(patients)} frames has any of {', '.join(names)}.")
    some = counted.any(axis=1)
    counts = [(int(some.sum()), len(np.unique(patients[some])))]
    counts += [(int(column.sum()), len(np.unique(patients[column]))) for column in counted.T]
    found, draws = [], []
    for pair in zip(by_seed, others_by_seed, strict=True):
        one, other = (patient_sums(measured, patients) for measured in pair)
        # As above.
        drawn, other_drawn = (means_of(resampled(tables, resamples, seed)) for tables in (one, other))
        found.append(means_of(one.sum(axis=0)) - means_of(other.sum(axis=0)))
        draws.append(drawn - other_drawn)
    return with_intervals([mean, *names], counts, *_over_seeds(found, draws, seed))


def _over_seeds(
    values: Sequence[Float[np.ndarray, " k"]], draws: Sequence[Float[np.ndarray, "r k"]], seed: int
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "r k"]]:
    """Return the mean over the seeds, and for each draw of patients the mean over seeds drawn with replacement."""
    seeds, resamples = len(values), len(draws[0])
    rng = np.random.default_rng([seed, 0x5EED])
    times = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    return np.mean(values, axis=0), np.einsum("rs,srk->rk", times / seeds, np.stack(draws))
