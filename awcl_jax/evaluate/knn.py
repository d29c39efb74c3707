"""Weighted nearest neighbours on frozen features: the quickest evaluation of an encoder."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from awcl_jax.evaluate.features import FeatureSet, check_patients_apart
from awcl_jax.evaluate.neighbours import nearest_among
from awcl_jax.evaluate.scores import Score, classification_scores, prefixed
from awcl_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class KNN:
    """A classifier that assigns each frame the anatomy with most votes of its nearest training frames.

        vote(c) = sum over the nearest k training frames i of anatomy c of exp(cos(x, x_i) / temperature)

    after Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination", Sec. 3.4 (there
    k = 200 and temperature = 0.07, on ImageNet). In a training set smaller than `neighbours`, all frames vote.

    Attributes:
      neighbours: k, number of training frames that vote.
      temperature: the lower, the more the nearest frames count.
      resamples: draws of the bootstrap over patients.
      seed: of these draws.

    Raises:
      InputError: `neighbours` or `temperature` is not positive.
    """

    neighbours: int = 20
    temperature: float = 0.07
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise InputError(f"neighbours must be >= 1; got {self.neighbours}.")
        if not self.temperature > 0:
            raise InputError(f"The kNN temperature must be > 0; got {self.temperature}.")

    def run(self, train: FeatureSet, test: FeatureSet, names: Sequence[str]) -> list[Score]:
        """Return scores on the labelled test frames, named `knn/accuracy`, `knn/macro_f1`, `knn/f1/NAME` and so on.

        Args:
          train: the frames that vote.
          test: the frames to classify, of other patients.
          names: the anatomies that the labels number.

        Raises:
          InputError: a set has no labelled frame, or a patient is in both.
        """
        test = test.labelled()
        predictions = self.predict(train, test)
        scores = classification_scores(
            test.labels, predictions, test.patients, names=names, resamples=self.resamples, seed=self.seed
        )
        return prefixed("knn", scores)

    def predict(self, train: FeatureSet, test: FeatureSet) -> Int[np.ndarray, " n"]:
        """Return the anatomy [n] of each test frame, labelled or not; arguments and errors as in `run`."""
        from sklearn.utils.extmath import weighted_mode

        check_patients_apart(train=train, test=test)
        train = train.labelled()
        frames, distances = nearest_among(test.features, train.features, min(self.neighbours, len(train)))
        elected, _ = weighted_mode(train.labels[frames], self._votes(distances), axis=1)
        return elected[:, 0].astype(train.labels.dtype)

    def _votes(self, distances: Float[np.ndarray, "n neighbours"]) -> Float[np.ndarray, "n neighbours"]:
        # Distances are 1 - cos. Subtracting the nearest distance keeps the order of the votes and cannot overflow.
        distances = distances.astype(np.float64)
        return np.exp(-(distances - distances.min(axis=1, keepdims=True)) / self.temperature)
