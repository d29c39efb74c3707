"""The downstream tasks, standard planes and segmentation: their frames, validation score and test."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num, PyTree, UInt8

from awcl_jax.data.record import HEAD_CIRCUMFERENCE
from awcl_jax.data.selection import Split, Splits, keep_label_fraction, row_of
from awcl_jax.evaluate.encode import EncodeFn, encode_frames
from awcl_jax.evaluate.head_circumference import agreement_scores, head_circumference
from awcl_jax.evaluate.scores import (
    MOST_ANATOMIES,
    Score,
    classification_scores,
    mean_scores,
    prefixed,
    rate_scores,
)
from awcl_jax.evaluate.segmentation import BACKGROUND, dice_of, iou_of, segmentation_scores
from awcl_jax.runtime.errors import InputError

_CHUNK = 256  # masks read at a time
_MOST_DRAWN = 60  # anatomies in the picture of the confusion matrix, which grows with their square
_FEWEST = 100  # resamples, if only the value is used

Columns = Mapping[str, Callable[[Int[np.ndarray, " b"]], np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a test.

    Attributes:
      scores: with their intervals.
      baseline: scores of a prediction that ignores the frame.
      details: further plain values for `results.json`.
      frames: for each test frame, the prediction and its quality.
      draw: writes pictures to a folder.
      left_out: what is missing because there are too many anatomies, in one sentence.
    """

    scores: list[Score]
    baseline: list[Score]
    details: dict[str, Any]
    frames: list[dict[str, Any]]
    draw: Callable[[Path], None]
    left_out: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
    """Some frames of a split, and a class of each: its anatomy, or the largest structure in its mask."""

    part: Split
    positions: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]

    @property
    def patients(self) -> Int[np.ndarray, " n"]:
        return self.part.index.patients[self.positions]

    def predict(self, predict: EncodeFn, variables: PyTree, *, batch_size: int) -> Num[np.ndarray, "n ..."]:
        """Return a model's predictions for these frames."""
        return encode_frames(predict, variables, self.part.reader, self.positions, batch_size=batch_size)

    def row(self, i: int) -> dict[str, Any]:
        """Return id, patient and machine of the i-th frame."""
        return row_of(self.part.index, self.positions[i])


# Standard planes ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Planes:
    """Task I: which anatomy a frame shows.

    Attributes:
      names: of the anatomies to classify.
      train, val, test: frames that show one of them, each with its number in `names`.
    """

    names: tuple[str, ...]
    train: Frames
    val: Frames
    test: Frames
    chosen_by = "val/macro_f1"

    @property
    def classes(self) -> int:
        return len(self.names)

    def columns(self) -> Columns:
        """Return the columns that training reads of a frame."""
        label_of = np.full(len(self.train.part.index), -1, np.int32)
        label_of[self.train.positions] = self.train.labels
        return {"image": self.train.part.reader.read, "label": lambda frames: label_of[frames]}

    def validate(self, predict: EncodeFn, variables: PyTree, *, batch_size: int) -> dict[str, float]:
        """Return accuracy and macro-F1 on the validation patients."""
        predictions = self.val.predict(predict, variables, batch_size=batch_size)
        scores = classification_scores(
            self.val.labels, predictions, self.val.patients, names=self.names, resamples=_FEWEST
        )
        return {f"val/{score.name}": score.value for score in scores if score.name in ("accuracy", "macro_f1")}

    def examine(self, predict: EncodeFn, variables: PyTree, *, batch_size: int) -> Outcome:
        """Score on the test patients; the baseline always predicts the most frequent training anatomy."""
        from sklearn.metrics import confusion_matrix

        labels = self.test.labels
        predictions = self.test.predict(predict, variables, batch_size=batch_size)
        constant = np.full_like(predictions, np.bincount(self.train.labels).argmax())
        scores, baseline = (
            [
                *classification_scores(labels, predicted, self.test.patients, names=self.names),
                *rate_scores(labels, predicted, self.test.patients, names=self.names),
            ]
            for predicted in (predictions, constant)
        )
        many = self.classes > MOST_ANATOMIES
        details: dict[str, Any] = {"anatomies": list(self.names)}
        if not many:
            details["confusion"] = confusion_matrix(labels, predictions, labels=range(self.classes)).tolist()
        crowded = np.union1d(labels, predictions).size > _MOST_DRAWN

        def draw(folder: Path) -> None:
            from awcl_jax.report import drawing

            if not crowded:
                drawing.confusion_picture(labels, predictions, self.names, folder / "confusion.png")

        rows = [
            self.test.row(i) | {"label": self.names[labels[i]], "prediction": self.names[predictions[i]]}
            for i in range(labels.size)
        ]
        return Outcome(
            scores,
            baseline,
            details,
            rows,
            draw,
            left_out=_left_out(self.classes, many=many, crowded=crowded),
        )


def _left_out(classes: int, *, many: bool, crowded: bool) -> str:
    if many:
        return (
            f"Of {classes:,} anatomies only summaries are scored: the scores of single anatomies and the confusion "
            f"matrix are left out above {MOST_ANATOMIES:,}."
        )
    return f"confusion.png is left out above {_MOST_DRAWN} anatomies; results.json has the counts." if crowded else ""


def planes(
    selection: Splits, *, granularity: str, anatomies: Sequence[str], label_fraction: float, seed: int
) -> Planes:
    """Make task I on a dataset.

    Args:
      selection: its frames.
      granularity: of the anatomy.
      anatomies: names of those to classify; if empty, all that a frame shows.
      label_fraction: share of the training patients' labelled frames to train on.
      seed: of their draw.

    Raises:
      InputError: an anatomy is unknown, a split shows none of them, fewer than two are shown in training, or the
        fraction leaves fewer frames than anatomies.
    """
    index = selection.train.index
    all_names = index.fine_names if granularity == "fine" else index.coarse_names
    if unknown := set(anatomies) - set(all_names):
        raise InputError(
            f"config.task.anatomies has unknown names {sorted(unknown)}; the data has {', '.join(all_names)}."
        )
    parts = (selection.train, selection.val, selection.test)
    shown = np.unique(np.concatenate([part.index.labels(granularity) for part in parts])).tolist()
    classified = [c for c, name in enumerate(all_names) if c in shown and (name in anatomies or not anatomies)]
    # UNLABELLED, -1, selects the last.
    class_of = np.full(len(all_names) + 1, -1)
    class_of[classified] = range(len(classified))

    def labelled(part: Split, purpose: str) -> Frames:
        classes = class_of[part.index.labels(granularity)]
        positions = np.flatnonzero(classes >= 0)
        if not positions.size:
            choice = ", ".join(anatomies or all_names)
            raise InputError(
                f"No {purpose} frame of {index.path} shows any of the anatomies to classify ({choice}). Prepare the "
                "dataset again: `ingest` spreads labelled patients over the splits, a column `split` sets them."
            )
        return Frames(part, positions, classes[positions])

    train, val, test = map(labelled, parts, ("training", "validation", "test"))
    if np.unique(train.labels).size < 2:
        raise InputError(
            f"The training frames of {index.path} show only {all_names[classified[train.labels[0]]]}. Training "
            "needs at least two anatomies."
        )
    kept = keep_label_fraction(train.labels, label_fraction, seed=seed)
    train = Frames(train.part, train.positions[kept], train.labels[kept])
    return Planes(tuple(all_names[c] for c in classified), train, val, test)


# Segmentation ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """Tasks II and III: which structure each pixel of a frame belongs to.

    Attributes:
      names: of the classes in the masks, the background first.
      head: classes that make up the head, for its circumference; if empty, none is measured.
      train, val, test: frames with a mask.
    """

    names: tuple[str, ...]
    head: tuple[int, ...]
    train: Frames
    val: Frames
    test: Frames
    chosen_by = "val/dice"

    @property
    def classes(self) -> int:
        return len(self.names)

    def columns(self) -> Columns:
        """Return the columns that training reads of a frame."""
        return {"image": self.train.part.reader.read, "mask": self.train.part.reader.read_masks}

    def validate(self, predict: EncodeFn, variables: PyTree, *, batch_size: int) -> dict[str, float]:
        """Return Dice on the validation patients, of each structure and their mean."""
        predictions = self.val.predict(predict, variables, batch_size=batch_size)
        dice = dice_of(predictions, _masks(self.val), classes=self.classes)
        scores = mean_scores(dice, self.val.patients, names=self.names[1:], mean="mean", resamples=_FEWEST)
        return {"val/dice" if score.name == "mean" else f"val/dice_of/{score.name}": score.value for score in scores}

    def examine(self, predict: EncodeFn, variables: PyTree, *, batch_size: int) -> Outcome:
        """Score on the test patients; the baseline marks nothing."""
        masks, patients = _masks(self.test), self.test.patients
        predictions = self.test.predict(predict, variables, batch_size=batch_size)
        scores, baseline = (
            segmentation_scores(predicted, masks, patients, names=self.names)
            for predicted in (predictions, np.zeros_like(predictions))
        )
        measures = {
            f"{title}/{name}": column
            for title, measure in (("dice", dice_of), ("iou", iou_of))
            for name, column in zip(self.names[1:], measure(predictions, masks, classes=self.classes).T, strict=True)
        }
        details: dict[str, Any] = {"structures": list(self.names[1:])}
        if self.head:
            measured, reference, of_masks = self._circumferences(predictions, masks)
            scores += prefixed("hc", agreement_scores(measured, reference, patients))
            measures |= {"hc_mm": measured, "hc_reference_mm": reference}
            details["hc_reference"] = "mask" if of_masks is reference else "publisher"
            if of_masks is not reference:
                # The error of the measurement itself.
                scores += prefixed("hc_of_masks", agreement_scores(of_masks, reference, patients))

        def draw(folder: Path) -> None:
            from awcl_jax.downstream import pictures as downstream_pictures

            dice = dice_of(predictions, masks, classes=self.classes)
            shown = np.flatnonzero(~np.isnan(dice).all(axis=1))
            downstream_pictures.overlays(
                lambda frames: self.test.part.reader.read(self.test.positions[frames]),
                masks,
                predictions,
                {int(i): float(np.nanmean(dice[i])) for i in shown},
                patients,
                self.names,
                folder / "overlays.png",
            )
            if self.head and (~np.isnan(measured - reference)).sum() > 1:
                downstream_pictures.bland_altman(measured, reference, folder / "head_circumference.png")

        rows = [
            self.test.row(i) | {name: _plain(column[i]) for name, column in measures.items()} for i in range(len(masks))
        ]
        return Outcome(scores, baseline, details, rows, draw)

    def _circumferences(
        self, predictions: UInt8[np.ndarray, "n h w"], masks: UInt8[np.ndarray, "n h w"]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Measure predictions, reference and reference masks; the last two are the same without a published one."""
        reader, positions = self.test.part.reader, self.test.positions
        pixels = reader.pixel_sizes(positions)
        measured, of_masks = (
            np.array([head_circumference(head, pixel) for head, pixel in zip(self._heads(p), pixels, strict=True)])
            for p in (predictions, masks)
        )
        published = reader.measures(HEAD_CIRCUMFERENCE, positions)
        reference = of_masks if np.isnan(published).all() else published
        if np.isnan(reference).all():
            raise InputError(
                f"No test frame of {self.test.part.index.path} has a head whose circumference is known. Disable its "
                "measurement with --config.task.head='()'."
            )
        return measured, reference, of_masks

    def _heads(self, masks: UInt8[np.ndarray, "n h w"]) -> Bool[np.ndarray, "n h w"]:
        return np.isin(masks, self.head)


def segmentation(
    selection: Splits, *, head: Sequence[str], empty_frames: bool, label_fraction: float, seed: int
) -> Segmentation:
    """Make task II, or III, on a dataset.

    Args:
      selection: its frames.
      head: names of the classes that make up the head; if empty, none is measured.
      empty_frames: also use frames whose mask is empty. If there are many, and some show a structure that was not
        outlined (such as a scan's frames on the way to a plane), training learns to mark nothing.
      label_fraction: share of the training patients' frames to train on; at least one per structure.
      seed: of their draw.

    Raises:
      InputError: there are no masks, a split shows no structure, a name is unknown, pixels have no size where the head
        would be measured, or the fraction leaves fewer frames than there are structures.
    """
    path, names = selection.train.index.path, selection.train.reader.mask_names
    if not names:
        raise InputError(f"Segmentation needs masks; the dataset {path} has none. Choose another dataset.")
    if unknown := set(head) - set(names[1:]):
        raise InputError(
            f"config.task.head has unknown names {sorted(unknown)}; the masks of {path} show {', '.join(names[1:])}."
        )
    splits: dict[str, Frames] = {}
    for purpose, part in (("training", selection.train), ("validation", selection.val), ("test", selection.test)):
        structures = _largest_structures(part, len(names))
        if not structures.any():
            raise InputError(
                f"No {purpose} mask of {path} shows any of {', '.join(names[1:])}. Choose another dataset."
            )
        positions = np.flatnonzero((structures != BACKGROUND) | empty_frames)
        splits[purpose] = Frames(part, positions, structures[positions])
    train, val, test = splits.values()
    if head and np.isnan(test.part.reader.pixel_sizes(test.positions)).all():
        raise InputError(
            f"The dataset {path} has no pixel sizes, so no head can be measured in millimetres. Disable the "
            "measurement with --config.task.head='()'."
        )
    kept = keep_label_fraction(train.labels, label_fraction, seed=seed)
    train = Frames(train.part, train.positions[kept], train.labels[kept])
    return Segmentation(names, tuple(names.index(name) for name in head), train, val, test)


def _largest_structures(part: Split, classes: int) -> Int[np.ndarray, " n"]:
    """Return the largest structure in each mask, BACKGROUND for an empty mask."""
    largest = np.full(len(part.index), BACKGROUND)
    for start in range(0, largest.size, _CHUNK):
        frames = np.arange(start, min(start + _CHUNK, largest.size))
        masks = part.reader.read_masks(frames)
        areas = np.stack([(masks == c).sum(axis=(1, 2)) for c in range(1, classes)], axis=1)
        largest[frames] = np.where(areas.any(axis=1), 1 + areas.argmax(axis=1), BACKGROUND)
    return largest


def _masks(frames: Frames) -> UInt8[np.ndarray, "n h w"]:
    return frames.part.reader.read_masks(frames.positions)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)
