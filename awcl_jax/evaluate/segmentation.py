"""Overlap of predicted masks with reference masks, per structure."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from awcl_jax.evaluate.scores import Score, mean_scores, prefixed
from awcl_jax.runtime.errors import InputError

BACKGROUND = 0


def dice_of(
    predictions: UInt8[np.ndarray, "n h w"], masks: UInt8[np.ndarray, "n h w"], *, classes: int
) -> Float[np.ndarray, "n structures"]:
    """Return Dice per frame and structure: 2 |P and R| / (|P| + |R|), in pixels of prediction P and reference R.

    NaN if the reference does not show the structure, because there is nothing to find: an all-background prediction has
    a Dice of 0 in every frame that counts. `false_positives` measures structures marked in frames without them.

    Args:
      predictions: a class id for each pixel.
      masks: of the reference.
      classes: k, including the background (class 0, not a structure).

    Returns:
      [n, k - 1].
    """
    both, predicted, true = _areas(predictions, masks, classes)
    return np.divide(2 * both, predicted + true, out=np.full(both.shape, np.nan), where=true > 0)


def iou_of(
    predictions: UInt8[np.ndarray, "n h w"], masks: UInt8[np.ndarray, "n h w"], *, classes: int
) -> Float[np.ndarray, "n structures"]:
    """Return intersection over union per frame and structure, |P and R| / |P or R|; otherwise as `dice_of`."""
    both, predicted, true = _areas(predictions, masks, classes)
    return np.divide(both, predicted + true - both, out=np.full(both.shape, np.nan), where=true > 0)


def false_positives(
    predictions: UInt8[np.ndarray, "n h w"], masks: UInt8[np.ndarray, "n h w"], *, classes: int
) -> Float[np.ndarray, "n structures"]:
    """Return 1 for a structure marked in a frame without it, 0 if it is not marked; NaN if the reference shows it."""
    _, predicted, true = _areas(predictions, masks, classes)
    return np.where(true > 0, np.nan, predicted > 0)


def segmentation_scores(
    predictions: UInt8[np.ndarray, "n h w"],
    masks: UInt8[np.ndarray, "n h w"],
    patients: Int[np.ndarray, " n"],
    *,
    names: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> list[Score]:
    """Return Dice, intersection over union and false positives with 95% intervals over patients.

    A structure's score is the mean over the frames that show it (for false positives: that do not); `mean` is the mean
    of the structures' scores.

    Args:
      predictions: a class id for each pixel.
      masks: of the reference.
      patients: [n] patient of each frame.
      names: of the k classes, the background first.
      resamples: draws of the bootstrap.
      seed: of the draws.

    Returns:
      `dice/mean`, `dice/NAME` of each structure that the reference shows; likewise `iou`, and `false_positives` (of
      each structure that some frame does not show).

    Raises:
      InputError: no reference mask shows any structure.
    """
    if not (masks != BACKGROUND).any():
        raise InputError(f"None of the {len(masks)} reference masks shows any of {', '.join(names[1:])}.")
    result = []
    for title, measure in (("dice", dice_of), ("iou", iou_of), ("false_positives", false_positives)):
        values = measure(predictions, masks, classes=len(names))
        if not np.isnan(values).all():
            scores = mean_scores(values, patients, names=names[1:], mean="mean", resamples=resamples, seed=seed)
            result += prefixed(title, scores)
    return result


def _areas(
    predictions: UInt8[np.ndarray, "n h w"], masks: UInt8[np.ndarray, "n h w"], classes: int
) -> tuple[Int[np.ndarray, "n s"], Int[np.ndarray, "n s"], Int[np.ndarray, "n s"]]:
    """Count pixels per frame and structure: in both, in the prediction, in the reference."""
    structures = range(1, classes)
    predicted, true = (
        np.stack([(pictures == c).sum(axis=(1, 2)) for c in structures], axis=1) for pictures in (predictions, masks)
    )
    both = np.stack([((predictions == c) & (masks == c)).sum(axis=(1, 2)) for c in structures], axis=1)
    return both, predicted, true
