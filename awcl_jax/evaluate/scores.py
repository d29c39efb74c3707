"""Scores with intervals that respect patients.

Frames of one patient are alike, so a thousand frames of ten patients prove hardly more than ten frames. The bootstrap
(percentile intervals: Efron & Tibshirani 1993, ch. 13) therefore draws patients with replacement, each with all frames.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from awcl_jax.runtime.errors import InputError

SUMMARIES = ("accuracy", "balanced_accuracy", "macro_f1")
MOST_ANATOMIES = 1000  # with a score each, a linear probe and a confusion matrix; above, only summaries
_FEWEST_RESAMPLES = 100
_NUMBERS_AT_A_TIME = 2**21  # of the draws, 16 MB


@dataclasses.dataclass(frozen=True)
class Score:
    """A measurement with its interval and the number of frames and patients.

    Attributes:
      name: of the measurement, such as `knn/macro_f1` or `probe/f1/femur`.
      value: the measurement.
      low: lower end of the 95% interval; nan for fewer than two patients, where the bootstrap has nothing to draw.
      high: upper end of it.
      frames: number of frames behind `value`.
      patients: number of patients of these frames.
    """

    name: str
    value: float
    low: float
    high: float
    frames: int
    patients: int

    def __str__(self) -> str:
        interval = "one patient" if np.isnan(self.low) else f"{self.low:.3f} to {self.high:.3f}"
        return f"{self.value:.3f} ({interval})"


def prefixed(prefix: str, scores: Iterable[Score]) -> list[Score]:
    """Return the same scores under the name `prefix/name`."""
    return [dataclasses.replace(score, name=f"{prefix}/{score.name}") for score in scores]


def classification_scores(
    labels: Int[np.ndarray, " n"],
    predictions: Int[np.ndarray, " n"],
    patients: Int[np.ndarray, " n"],
    *,
    names: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> list[Score]:
    """Return accuracy, balanced accuracy, macro-F1 and each anatomy's F1, with 95% intervals over patients.

    With the confusion matrix C[true, predicted],

        accuracy = sum_c C[c, c] / n
        balanced_accuracy = mean over c of C[c, c] / sum_j C[c, j]
        f1/c = 2 C[c, c] / (sum_j C[c, j] + sum_i C[i, c])
        macro_f1 = mean over c of f1/c

    where the means are over the anatomies c that occur in `labels`: an anatomy that is only ever predicted lowers the
    recall of the true ones but has no F1 of its own (scikit-learn's `f1_score(..., labels=unique(labels),
    average="macro")`). The same rule holds in every resample: an anatomy without a drawn frame is skipped.

    Scores on the same patients with the same seed use the same draws.

    Args:
      labels: [n] true anatomy of each frame, 0 to k - 1.
      predictions: [n] predicted anatomy, 0 to k - 1.
      patients: [n] patient of each frame.
      names: the k anatomies.
      resamples: draws of the bootstrap; at least 100, because the interval ends at the 2.5th and 97.5th percentile.
      seed: of the draws.

    Returns:
      `accuracy`, `balanced_accuracy` and `macro_f1` with counts of all frames and patients, then `f1/NAME` of every
      anatomy that occurs, in the order of `names`, with counts of its frames and patients; only the first three if
      there are more than `MOST_ANATOMIES` names.

    Raises:
      InputError: there is no frame, the lengths differ, an anatomy is outside `names`, or `resamples` is below 100.
    """
    check_classification(labels, predictions, patients, names)
    return _scores(
        SUMMARIES, ("f1",), scores_of, patient_counts(labels, predictions, patients, len(names)), names, resamples, seed
    )


def rate_scores(
    labels: Int[np.ndarray, " n"],
    predictions: Int[np.ndarray, " n"],
    patients: Int[np.ndarray, " n"],
    *,
    names: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> list[Score]:
    """Return precision and recall of each anatomy, with 95% intervals over patients.

    With the confusion matrix C[true, predicted],

        precision/c = C[c, c] / sum_i C[i, c]     (0 where c is never predicted, as scikit-learn's zero_division=0)
        recall/c = C[c, c] / sum_j C[c, j]
        macro_precision, macro_recall = mean over the anatomies c that occur in `labels`

    Args, errors, draws and skipped anatomies are as in `classification_scores`.

    Returns:
      `macro_precision` and `macro_recall`, then `precision/NAME` of every anatomy that occurs, then `recall/NAME`;
      only the first two if there are more than `MOST_ANATOMIES` names.
    """
    check_classification(labels, predictions, patients, names)
    return _scores(
        ("macro_precision", "macro_recall"),
        ("precision", "recall"),
        _rates_of,
        patient_counts(labels, predictions, patients, len(names)),
        names,
        resamples,
        seed,
    )


def mean_scores(
    values: Float[np.ndarray, "n c"],
    patients: Int[np.ndarray, " n"],
    *,
    names: Sequence[str],
    mean: str,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Score]:
    """Return means over frames of several measurements, with 95% intervals over patients.

        NAME = mean of values[i, c] over the frames i where it is not NaN
        mean = mean of these over the measurements c with any such frame

    In a resample, a measurement that no drawn frame has is skipped. The draws are those of `classification_scores`.

    Args:
      values: c measurements of each frame, NaN where a frame does not count.
      patients: [n] patient of each frame.
      names: of the measurements.
      mean: name of the mean over them.
      resamples: draws of the bootstrap; at least 100.
      seed: of the draws.

    Returns:
      `mean`, then each measurement that any frame has, with counts of these frames and their patients.

    Raises:
      InputError: no frame has any measurement, or `resamples` is below 100.
    """
    tables = patient_sums(values, patients)
    counted = ~np.isnan(values).all(axis=1)
    overall = (int(counted.sum()), len(np.unique(patients[counted])))
    if not overall[0]:
        raise InputError(f"None of these {len(values)} frames has any of {', '.join(names)}.")
    return with_intervals(
        [mean, *names],
        [overall, *_counts_of(tables[:, 1].astype(int))],
        means_of(tables.sum(axis=0)),
        means_of(resampled(tables, resamples, seed)),
    )


def with_intervals(
    titles: Sequence[str],
    counts: Sequence[tuple[int, int]],
    values: Float[np.ndarray, " s"],
    draws: Float[np.ndarray, "r s"],
) -> list[Score]:
    """Return scores with these names and counts of frames and patients; scores without a frame are left out."""
    result = []
    for title, (n_frames, n_patients), value, drawn in zip(titles, counts, values, draws.T, strict=True):
        if n_frames:
            # A draw may hold no frame of an anatomy; if no draw does, there is no interval.
            some = n_patients > 1 and not np.isnan(drawn).all()
            low, high = np.nanpercentile(drawn, [2.5, 97.5]) if some else (np.nan, np.nan)
            result.append(Score(title, float(value), float(low), float(high), frames=n_frames, patients=n_patients))
    return result


def scores_as_json(scores: Iterable[Score]) -> dict[str, dict[str, Any]]:
    """Return scores by name as plain values; JSON has no NaN, so a single patient's interval is null."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {score.name: {k: plain(v) for k, v in dataclasses.asdict(score).items() if k != "name"} for score in scores}


def check_classification(
    labels: Int[np.ndarray, " n"],
    predictions: Int[np.ndarray, " m"],
    patients: Int[np.ndarray, " p"],
    names: Sequence[str],
) -> None:
    """Check labels, predictions and patients.

    Raises:
      InputError: there is no frame, the lengths differ, or an anatomy is outside `names`.
    """
    lengths = (len(labels), len(predictions), len(patients))
    if len(set(lengths)) != 1 or not len(labels):
        raise InputError(
            f"Scores need a label, a prediction and a patient per frame, and at least one frame; got lengths {lengths}."
        )
    for what, anatomy in (("label", labels), ("prediction", predictions)):
        if anatomy.min() < 0 or anatomy.max() >= len(names):
            raise InputError(
                f"Every {what} must be one of the {len(names)} anatomies 0 to {len(names) - 1}; got values from "
                f"{anatomy.min()} to {anatomy.max()}. Drop unlabelled frames first."
            )


def _counts_of(frames: Int[np.ndarray, "p k"]) -> list[tuple[int, int]]:
    """Return the counts of frames and patients of each column."""
    return [(int(column.sum()), int(np.count_nonzero(column))) for column in frames.T]


def patient_counts(
    labels: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"], patients: Int[np.ndarray, " n"], k: int
) -> Any:
    """Return hits, true frames and predicted frames of each patient and anatomy: a sparse matrix [p, 3k].

    These are diagonal, row sums and column sums of each patient's confusion matrix, and all that the scores need. A
    patient shows few of many anatomies, so memory grows with the frames. Rows are in the order of the patients'
    numbers.
    """
    from scipy.sparse import coo_array

    unique, patient = np.unique(patients, return_inverse=True)
    hit = labels == predictions
    rows = np.concatenate([patient[hit], patient, patient])
    columns = np.concatenate([labels[hit], k + labels, 2 * k + predictions])
    return coo_array((np.ones(rows.size), (rows, columns)), shape=(len(unique), 3 * k)).tocsr()


def counts_by_anatomy(counts: Any) -> list[tuple[int, int]]:
    """Return the frames and patients of each anatomy, from `patient_counts`."""
    k = counts.shape[1] // 3
    true = counts[:, k : 2 * k].tocsc()
    return list(zip(true.sum(axis=0).astype(int).tolist(), np.diff(true.indptr).tolist(), strict=True))


def from_counts(
    statistic: Callable[[Float[np.ndarray, "*r 3 k"]], Float[np.ndarray, "*r s"]],
    counts: Any,
    *,
    summaries: int,
    resamples: int,
    seed: int,
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, "r s"]]:
    """Return a statistic of all patients, and in each draw of patients.

    Above `MOST_ANATOMIES` anatomies only its first `summaries` numbers are kept. A few draws are computed at a time, so
    that memory grows with the anatomies only by what is returned.

    Args:
      statistic: of hits, true and predicted frames by anatomy.
      counts: of `patient_counts`.
      summaries: how many of its numbers are not of one anatomy.
      resamples: draws of the bootstrap.
      seed: of the draws.
    """
    patients, k = counts.shape[0], counts.shape[1] // 3
    kept = slice(summaries if k > MOST_ANATOMIES else None)
    times = _draws(patients, resamples, seed)
    parts = -(-times.shape[0] * 3 * k // _NUMBERS_AT_A_TIME)
    drawn = [
        # A copy: a view would keep the numbers of the anatomies.
        statistic((part @ counts).reshape(-1, 3, k))[:, kept].copy()
        for part in np.array_split(times, max(parts, 1))
    ]
    return statistic(counts.sum(axis=0).reshape(3, k))[kept], np.concatenate(drawn)


def _scores(
    summaries: Sequence[str],
    rates: Sequence[str],
    statistic: Callable[[Float[np.ndarray, "*r 3 k"]], Float[np.ndarray, "*r s"]],
    counts: Any,
    names: Sequence[str],
    resamples: int,
    seed: int,
) -> list[Score]:
    values, drawn = from_counts(statistic, counts, summaries=len(summaries), resamples=resamples, seed=seed)
    return with_intervals(*titled(summaries, rates, names, counts), values, drawn)


def titled(
    summaries: Sequence[str], rates: Sequence[str], names: Sequence[str], counts: Any
) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the names of scores and their counts of frames and patients, in the order of `from_counts`."""
    by_anatomy = counts_by_anatomy(counts)
    titles, behind = list(summaries), [(sum(frames for frames, _ in by_anatomy), counts.shape[0])] * len(summaries)
    if len(names) <= MOST_ANATOMIES:
        titles += [f"{rate}/{name}" for rate in rates for name in names]
        behind += by_anatomy * len(rates)
    return titles, behind


def patient_sums(values: Float[np.ndarray, "n c"], patients: Int[np.ndarray, " n"]) -> Float[np.ndarray, "p 2 c"]:
    """Return sum and number of each patient's values that are not NaN, in the order of the patients' numbers."""
    unique, patient = np.unique(patients, return_inverse=True)
    sums = np.zeros((len(unique), 2, values.shape[1]))
    np.add.at(sums, patient, np.stack([np.nan_to_num(values), ~np.isnan(values)], axis=1))
    return sums


def resampled(tables: Shaped[np.ndarray, "p ..."], resamples: int, seed: int) -> Float[np.ndarray, "r ..."]:
    """Return the sums of the patients' tables in each draw; same number of patients and seed, same draws.

    Raises:
      InputError: there are fewer than 100 resamples.
    """
    times = _draws(len(tables), resamples, seed)
    return (times @ tables.reshape(len(tables), -1)).reshape(resamples, *tables.shape[1:])


def _draws(patients: int, resamples: int, seed: int) -> Float[np.ndarray, "r p"]:
    """Return how often each patient occurs in each draw."""
    if resamples < _FEWEST_RESAMPLES:
        raise InputError(f"A 95% interval needs at least {_FEWEST_RESAMPLES} resamples; got {resamples}.")
    # Drawing p patients with replacement means drawing how often each occurs; the table of a draw is then a weighted
    # sum of the patients' tables, and all draws are one matrix product.
    rng = np.random.default_rng([seed, 0xB007])
    return rng.multinomial(patients, np.full(patients, 1 / patients), size=resamples).astype(np.float64)


def scores_of(counts: Float[np.ndarray, "*r 3 k"]) -> Float[np.ndarray, "*r summaries_and_k"]:
    """Return accuracy, balanced accuracy, macro-F1 and the F1 of each anatomy, NaN for one that does not occur.

    Args:
      counts: hits, true frames and predicted frames of each anatomy.
    """
    hits, true, predicted = (counts[..., row, :] for row in range(3))
    absent = np.full(hits.shape, np.nan)
    recall = np.divide(hits, true, out=absent.copy(), where=true > 0)
    f1 = np.divide(2 * hits, true + predicted, out=absent.copy(), where=true > 0)
    accuracy = hits.sum(axis=-1) / true.sum(axis=-1)
    summaries = np.stack([accuracy, np.nanmean(recall, axis=-1), np.nanmean(f1, axis=-1)], axis=-1)
    return np.concatenate([summaries, f1], axis=-1)


def _rates_of(counts: Float[np.ndarray, "*r 3 k"]) -> Float[np.ndarray, "*r summaries_and_2k"]:
    hits, true, predicted = (counts[..., row, :] for row in range(3))
    absent = np.full(hits.shape, np.nan)
    precision = np.divide(hits, np.maximum(predicted, 1), out=absent.copy(), where=true > 0)
    recall = np.divide(hits, true, out=absent.copy(), where=true > 0)
    summaries = np.stack([np.nanmean(precision, axis=-1), np.nanmean(recall, axis=-1)], axis=-1)
    return np.concatenate([summaries, precision, recall], axis=-1)


def means_of(sums: Float[np.ndarray, "*r 2 c"]) -> Float[np.ndarray, "*r one_and_c"]:
    """Return the mean of means, then each mean, from sums and numbers; NaN if the number is 0."""
    total, number = sums[..., 0, :], sums[..., 1, :]
    means = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    some = (number > 0).sum(axis=-1)
    overall = np.divide(np.nansum(means, axis=-1), some, out=np.full(some.shape, np.nan, np.float64), where=some > 0)
    return np.concatenate([overall[..., None], means], axis=-1)
