"""What a frozen encoder has learnt: its features, and the evaluators' scores on them."""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float, Int, PyTree

from awcl_jax.data.reader import FrameReader
from awcl_jax.evaluate.encode import EncodeFn, encode_frames
from awcl_jax.evaluate.features import FeatureSet
from awcl_jax.evaluate.knn import KNN
from awcl_jax.evaluate.linear_probe import LinearProbe
from awcl_jax.evaluate.scores import Score

PIXELS = 24  # edge of the downsampled frame that stands in for an encoder


Features = Callable[[FrameReader, Int[np.ndarray, " n"]], Float[np.ndarray, "n f"]]
"""Features of a reader's frames: an encoder, or something that stands in for one."""


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
        """Features of all these frames."""
        return FeatureSet(encode(self.reader, self.frames), self.labels, self.patients)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """kNN and linear probe on frozen features, with patients of its own for every purpose.

    Where no frame has a label, or all training frames have the same one, there is nothing to tell apart: no scores.

    Attributes:
      encode: (variables, uint8 frames) -> features, compiled.
      batch_size: frames encoded at a time.
      train, val, test: frames that the evaluators fit to, choose by, and are scored on.
      names: the anatomies that the labels count.
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
        """Why nothing is scored, in one sentence; empty where something is."""
        shown = np.unique(self.train.labels)
        if not shown.size:
            return "No frame has a label, and so nothing is scored."
        if shown.size == 1:
            return (
                f"All {self.train.labels.size:,} labelled training frames show {self.names[shown[0]]!r}: there is "
                "nothing to tell apart, and so nothing is scored."
            )
        return ""

    def encoder(self, variables: PyTree) -> Features:
        """Features by an encoder with these variables."""
        return lambda reader, frames: encode_frames(self.encode, variables, reader, frames, batch_size=self.batch_size)

    def validate(self, variables: PyTree) -> dict[str, float]:
        """Accuracy and macro-F1 on the validation patients, for the curves and the choice of the best checkpoint."""
        if self.unscored:
            return {}
        train, val = (part.features(self.encoder(variables)) for part in (self.train, self.val))
        scores = [
            *KNN(neighbours=self.neighbours, resamples=100).run(train, val, self.names),
            *LinearProbe(resamples=100).run(train, None, val, self.names),
        ]
        shown = ("accuracy", "macro_f1")
        return {f"val/{score.name}": score.value for score in scores if score.name.split("/")[1] in shown}

    def test_scores(self, encode: Features) -> list[Score]:
        """All scores on the test patients; the probe's penalty is chosen on the validation patients."""
        if self.unscored:
            return []
        train, val, test = (part.features(encode) for part in (self.train, self.val, self.test))
        return [
            *KNN(neighbours=self.neighbours).run(train, test, self.names),
            *LinearProbe().run(train, val, test, self.names),
        ]

    def knn_confusion(self, encode: Features) -> Int[np.ndarray, "k k"]:
        """Test frames by their true anatomy (rows) and the one that the kNN takes them for (columns)."""
        from sklearn.metrics import confusion_matrix

        if self.unscored:
            return np.zeros((len(self.names), len(self.names)), np.int64)
        train, test = (part.features(encode) for part in (self.train, self.test))
        predictions = KNN(neighbours=self.neighbours).predict(train, test)
        return confusion_matrix(test.labels, predictions, labels=range(len(self.names)))


def cached_features(features: Features) -> Features:
    """The same features, computed once for each frame however often they are asked for.

    They stay in memory as long as what is returned: 2 kB for each frame and 512 features.
    """
    known: dict[FrameReader, dict[int, Float[np.ndarray, " f"]]] = {}

    def look_up(reader: FrameReader, frames: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n f"]:
        rows = known.setdefault(reader, {})
        wanted = np.array([frame for frame in dict.fromkeys(frames.tolist()) if frame not in rows], np.int64)
        if wanted.size:
            rows.update(zip(wanted.tolist(), features(reader, wanted), strict=True))
        return np.stack([rows[frame] for frame in frames.tolist()])

    return look_up


def downsampled_pixels(reader: FrameReader, frames: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n f"]:
    """Frames of 24 x 24 pixels as features: what can be told without an encoder."""
    images = reader.read(frames)
    small = [cv2.resize(image, (PIXELS, PIXELS), interpolation=cv2.INTER_AREA).reshape(-1) for image in images]
    return np.stack(small).astype(np.float32) / 255
