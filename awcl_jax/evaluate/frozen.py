"""Evaluate a frozen encoder: its features, and the evaluators' scores on them."""

import dataclasses
from collections.abc import Callable, Mapping

import cv2
import numpy as np
from jaxtyping import Float, Int, PyTree

from awcl_jax.data.reader import FrameReader
from awcl_jax.evaluate.encode import EncodeFn, encode_frames
from awcl_jax.evaluate.features import FeatureSet
from awcl_jax.evaluate.knn import KNN
from awcl_jax.evaluate.linear_probe import LinearProbe
from awcl_jax.evaluate.paired import classification_differences
from awcl_jax.evaluate.scores import MOST_ANATOMIES, Score, prefixed

PIXELS = 24  # edge of the downsampled frame used in place of features
_READ = 256  # frames in memory at a time


Features = Callable[[FrameReader, Int[np.ndarray, " n"]], Float[np.ndarray, "n f"]]
"""(reader, frames) -> features: an encoder, or a substitute for one."""


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledFrames:
    """Frames to evaluate on.

    Attributes:
      reader: their pictures.
      frames: which of the reader's frames.
      labels: anatomy of each.
      patients: patient of each.
    """

    reader: FrameReader
    frames: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    patients: Int[np.ndarray, " n"]

    def features(self, encode: Features) -> FeatureSet:
        """Return the features of all these frames."""
        return FeatureSet(encode(self.reader, self.frames), self.labels, self.patients)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """kNN and linear probe on frozen features, with separate patients for training, validation and test.

    If no frame has a label, or all training frames have the same one, nothing can be classified: no scores. Above
    `MOST_ANATOMIES` names only the kNN is scored, by its summaries: a probe and a matrix grow with their square.

    Attributes:
      encode: (variables, uint8 frames) -> features, compiled.
      batch_size: frames encoded at a time.
      train, val, test: frames to fit on, to choose by, and to score on.
      names: the anatomies that the labels number.
      neighbours: of the kNN.
    """

    encode: EncodeFn
    batch_size: int
    train: LabelledFrames
    val: LabelledFrames
    test: LabelledFrames
    names: tuple[str, ...]
    neighbours: int = 20

    @property
    def unscored(self) -> str:
        """The reason why nothing is scored, in one sentence; empty if something is."""
        shown = np.unique(self.train.labels)
        if not shown.size:
            return "No frame has a label of the anatomies to score, so nothing is scored."
        if shown.size == 1:
            return (
                f"All {self.train.labels.size:,} labelled training frames show {self.names[shown[0]]!r}, so "
                "nothing is scored."
            )
        return ""

    @property
    def _many(self) -> bool:
        return len(self.names) > MOST_ANATOMIES

    @property
    def left_out(self) -> str:
        """What is not scored because there are too many anatomies, in one sentence; empty if all is."""
        if self.unscored or not self._many:
            return ""
        return (
            f"Of {len(self.names):,} anatomies only summaries of the kNN are scored: the linear probe, the scores of "
            f"single anatomies and the confusion matrix are left out above {MOST_ANATOMIES:,}."
        )

    def test_patients_by_anatomy(self) -> dict[str, int]:
        """Count the test patients with frames of each anatomy, where there are some."""
        pairs = np.unique(np.stack([self.test.labels, self.test.patients]), axis=1)
        return {self.names[label]: int(n) for label, n in zip(*np.unique(pairs[0], return_counts=True), strict=True)}

    def encoder(self, variables: PyTree) -> Features:
        """Return the features of an encoder with these variables."""
        return lambda reader, frames: encode_frames(self.encode, variables, reader, frames, batch_size=self.batch_size)

    def validate(self, variables: PyTree) -> dict[str, float]:
        """Return accuracy and macro-F1 on the validation patients, for the curves and the best checkpoint."""
        if self.unscored:
            return {}
        train, val = (part.features(self.encoder(variables)) for part in (self.train, self.val))
        scores = KNN(neighbours=self.neighbours, resamples=100).run(train, val, self.names)
        if not self._many:
            scores += LinearProbe(resamples=100).run(train, None, val, self.names)
        shown = ("accuracy", "macro_f1")
        return {f"val/{score.name}": score.value for score in scores if score.name.split("/")[1] in shown}

    def test_scores(self, encode: Features) -> list[Score]:
        """Return all scores on the test patients; the probe's penalty is chosen on the validation patients."""
        if self.unscored:
            return []
        train, val, test = (part.features(encode) for part in (self.train, self.val, self.test))
        scores = KNN(neighbours=self.neighbours).run(train, test, self.names)
        return scores if self._many else [*scores, *LinearProbe().run(train, val, test, self.names)]

    def differences(self, encode: Features, others: Mapping[str, Features]) -> dict[str, Score]:
        """Return the kNN's macro-F1 on test patients minus that of each other encoder, paired by patient."""
        if self.unscored:
            return {}

        ours, found = self.knn_predictions(encode), {}
        for name, other in others.items():
            differences = classification_differences(
                self.test.labels, ours, self.knn_predictions(other), self.test.patients, names=self.names
            )
            (found[name],) = (score for score in prefixed("knn", differences) if score.name == "knn/macro_f1")
        return found

    def knn_confusion(self, encode: Features) -> Int[np.ndarray, "k k"] | None:
        """Count test frames by true anatomy (rows) and the kNN's prediction (columns); None for too many anatomies."""
        from sklearn.metrics import confusion_matrix

        if self._many:
            return None
        if self.unscored:
            return np.zeros((len(self.names), len(self.names)), np.int64)
        return confusion_matrix(self.test.labels, self.knn_predictions(encode), labels=range(len(self.names)))

    def knn_predictions(self, encode: Features) -> Int[np.ndarray, " n"]:
        """Return the kNN's anatomy for each test frame; there must be something to score."""
        train, test = (part.features(encode) for part in (self.train, self.test))
        return KNN(neighbours=self.neighbours).predict(train, test)


def cached_features(features: Features) -> Features:
    """Return the same features, computed only once per frame.

    They stay in memory as long as the returned function: 2 kB per frame of 512 features.
    """
    known: dict[FrameReader, dict[int, Float[np.ndarray, " f"]]] = {}

    def look_up(reader: FrameReader, frames: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n f"]:
        rows = known.setdefault(reader, {})
        missing = np.array([frame for frame in dict.fromkeys(frames.tolist()) if frame not in rows], np.int64)
        if missing.size:
            rows.update(zip(missing.tolist(), features(reader, missing), strict=True))
        return np.stack([rows[frame] for frame in frames.tolist()])

    return look_up


def downsampled_pixels(reader: FrameReader, frames: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n f"]:
    """Return frames of 24 x 24 pixels as features, the baseline without an encoder."""
    small = np.zeros((frames.size, PIXELS * PIXELS), np.uint8)
    for start in range(0, frames.size, _READ):
        for row, image in enumerate(reader.read(frames[start : start + _READ]), start):
            small[row] = cv2.resize(image, (PIXELS, PIXELS), interpolation=cv2.INTER_AREA).reshape(-1)
    return small.astype(np.float32) / 255
