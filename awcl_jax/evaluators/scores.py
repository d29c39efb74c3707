"""Classification scores with intervals that respect patients.

Frames of one patient are alike, so a thousand frames of ten patients say hardly more than ten frames. The bootstrap
(percentile intervals: Efron & Tibshirani 1993, ch. 13) therefore draws patients with replacement, each with all frames.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

from awcl_jax.errors import InputError

_SUMMARIES = ("accuracy", "balanced_accuracy", "macro_f1")
_FEWEST_RESAMPLES = 100


@dataclasses.dataclass(frozen=True)
class Score:
    """A number, how sure it is, and what it was measured on.

    Attributes:
      name: what was measured, such as `knn/macro_f1` or `probe/f1/femur`.
      value: the measurement.
      low: lower end of the 95% interval; nan where fewer than two patients leave nothing to draw from.
      high: upper end of it.
      frames: how many frames `value` rests on.
      patients: how many patients these frames are of.
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
    """The same scores under the name `prefix/name`."""
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
    """Accuracy, balanced accuracy, macro-F1 and the F1 of each anatomy, with 95% intervals over patients.

    With the confusion matrix C[true, predicted],

        accuracy = sum_c C[c, c] / n
        balanced_accuracy = mean over c of C[c, c] / sum_j C[c, j]
        f1/c = 2 C[c, c] / (sum_j C[c, j] + sum_i C[i, c])
        macro_f1 = mean over c of f1/c

    where the means are over the anatomies c that occur in `labels`: an anatomy that is only ever predicted lowers the
    recall of the true ones but has no F1 of its own (scikit-learn's `f1_score(..., labels=unique(labels),
    average="macro")`). The same rule holds in every resample: an anatomy of which no frame was drawn is skipped.

    Scores on the same patients with the same seed use the same draws.

    Args:
      labels: [n] true anatomy of each frame, 0 to k - 1.
      predictions: [n] predicted anatomy, 0 to k - 1.
      patients: [n] whose frame it is.
      names: the k anatomies.
      resamples: draws of the bootstrap; at least 100, for the interval ends at the 2.5th and 97.5th percentile.
      seed: of the draws.

    Returns:
      `accuracy`, `balanced_accuracy` and `macro_f1` with counts of all frames and patients, then `f1/NAME` of every
      anatomy that occurs, in the order of `names`, with counts of its own frames and patients.

    Raises:
      InputError: there is no frame, the lengths differ, an anatomy is outside `names`, or `resamples` is below 100.
    """
    _check(labels, predictions, patients, names, resamples)
    confusions = _patient_confusions(labels, predictions, patients, len(names))
    frames = confusions.sum(axis=2)  # [p, k] of each patient and true anatomy
    titles = [*_SUMMARIES, *(f"f1/{name}" for name in names)]
    counts = [(len(labels), len(frames))] * len(_SUMMARIES)
    counts += [(int(column.sum()), int(np.count_nonzero(column))) for column in frames.T]
    values, draws = _scores_of(confusions.sum(axis=0)), _scores_of(_resampled(confusions, resamples, seed))

    result = []
    for title, (n_frames, n_patients), value, drawn in zip(titles, counts, values, draws.T, strict=True):
        if n_frames:
            low, high = np.nanpercentile(drawn, [2.5, 97.5]) if n_patients > 1 else (np.nan, np.nan)
            result.append(Score(title, float(value), float(low), float(high), frames=n_frames, patients=n_patients))
    return result


def _check(
    labels: Int[np.ndarray, " n"],
    predictions: Int[np.ndarray, " m"],
    patients: Int[np.ndarray, " p"],
    names: Sequence[str],
    resamples: int,
) -> None:
    lengths = (len(labels), len(predictions), len(patients))
    if len(set(lengths)) != 1 or not len(labels):
        raise InputError(
            f"Scores need one label, prediction and patient for each of at least one frame; got {lengths}."
        )
    for what, anatomy in (("label", labels), ("prediction", predictions)):
        if anatomy.min() < 0 or anatomy.max() >= len(names):
            raise InputError(
                f"Every {what} must be one of the {len(names)} anatomies 0 to {len(names) - 1}; they range from "
                f"{anatomy.min()} to {anatomy.max()}: drop the unlabelled frames first."
            )
    if resamples < _FEWEST_RESAMPLES:
        raise InputError(f"A 95% interval needs at least {_FEWEST_RESAMPLES} resamples; got {resamples}.")


def _patient_confusions(
    labels: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"], patients: Int[np.ndarray, " n"], k: int
) -> Int[np.ndarray, "p k k"]:
    unique, patient = np.unique(patients, return_inverse=True)
    cells = (patient * k + labels) * k + predictions
    return np.bincount(cells, minlength=len(unique) * k * k).reshape(len(unique), k, k)


def _resampled(confusions: Int[np.ndarray, "p k k"], resamples: int, seed: int) -> Float[np.ndarray, "r k k"]:
    # Drawing p patients with replacement is drawing how often each one comes; the confusion matrix of a draw is then a
    # weighted sum, and all draws are one matrix product.
    p, k, _ = confusions.shape
    times = np.random.default_rng([seed, 0xB007]).multinomial(p, np.full(p, 1 / p), size=resamples)
    return (times.astype(np.float64) @ confusions.reshape(p, k * k)).reshape(resamples, k, k)


def _scores_of(
    confusions: Float[np.ndarray, "*r k k"] | Int[np.ndarray, "*r k k"],
) -> Float[np.ndarray, "*r summaries_and_k"]:
    hits = np.diagonal(confusions, axis1=-2, axis2=-1)
    true, predicted = confusions.sum(axis=-1), confusions.sum(axis=-2)
    absent = np.full(hits.shape, np.nan)
    recall = np.divide(hits, true, out=absent.copy(), where=true > 0)
    f1 = np.divide(2 * hits, true + predicted, out=absent.copy(), where=true > 0)
    accuracy = hits.sum(axis=-1) / true.sum(axis=-1)
    summaries = np.stack([accuracy, np.nanmean(recall, axis=-1), np.nanmean(f1, axis=-1)], axis=-1)
    return np.concatenate([summaries, f1], axis=-1)
