"""A linear classifier on frozen features: how linearly separable the anatomies are."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from threadpoolctl import threadpool_limits

from awcl_jax.evaluate.features import FeatureSet, check_patients_apart
from awcl_jax.evaluate.scores import Score, classification_scores, prefixed
from awcl_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Multinomial logistic regression on features standardised by the training frames.

    The weights W and offsets minimise, over the n training frames,

        1/n sum_i cross_entropy(i) + penalty/2 ||W||^2

    in float64 with L-BFGS from zero, so the same features give the same scores. The penalty is the one with the best
    macro-F1 on validation patients (the stronger one when two tie), never on test; without validation it is
    `default_penalty`. The probe is not fitted again on training and validation together: validation only chooses.

    Attributes:
      penalties: L2 strengths to choose from.
      default_penalty: the strength when there are no validation patients.
      resamples: draws of the bootstrap over patients.
      seed: of these draws.

    Raises:
      InputError: there is no penalty, or one is not positive.
    """

    penalties: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    default_penalty: float = 0.1
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.penalties or not all(penalty > 0 for penalty in (*self.penalties, self.default_penalty)):
            raise InputError(
                f"The probe needs at least one penalty, all > 0; got {self.penalties}, default {self.default_penalty}."
            )

    def run(self, train: FeatureSet, val: FeatureSet | None, test: FeatureSet, names: Sequence[str]) -> list[Score]:
        """Return scores on the labelled test frames: `probe/accuracy`, `probe/macro_f1`, `probe/f1/NAME` and so on.

        A test frame of an anatomy that no training frame shows counts as an error: its F1 is 0 and is part of macro-F1.

        Args:
          train: the frames to fit.
          val: the frames that choose the penalty, of other patients; None uses the default penalty.
          test: the frames to classify, of yet other patients.
          names: the anatomies that the labels number.

        Raises:
          InputError: a set has no labelled frame, a patient is in two of them, or the training frames show only one
            anatomy.
        """
        test = test.labelled()
        predictions = self.predict(train, val, test)
        scores = classification_scores(
            test.labels, predictions, test.patients, names=names, resamples=self.resamples, seed=self.seed
        )
        return prefixed("probe", scores)

    def predict(self, train: FeatureSet, val: FeatureSet | None, test: FeatureSet) -> Int[np.ndarray, " n"]:
        """Return the anatomy [n] of each test frame, labelled or not; arguments and errors as in `run`."""
        check_patients_apart(**{"train": train, "test": test} | ({"validation": val} if val is not None else {}))
        train = train.labelled()
        if len(np.unique(train.labels)) < 2:
            raise InputError(
                f"A probe needs at least two anatomies; all {len(train)} labelled training frames are of anatomy "
                f"{train.labels[0]}. Add frames of another."
            )
        if val is None:
            return _fit(train, self.default_penalty).predict(test.features.astype(np.float64))
        return self._choose(train, val.labelled()).predict(test.features.astype(np.float64))

    def _choose(self, train: FeatureSet, val: FeatureSet) -> Any:
        from sklearn.metrics import f1_score

        val_features, val_anatomies = val.features.astype(np.float64), np.unique(val.labels)
        best, best_f1 = None, -1.0
        for penalty in sorted(self.penalties, reverse=True):
            probe = _fit(train, penalty)
            predictions = probe.predict(val_features)
            f1 = f1_score(val.labels, predictions, labels=val_anatomies, average="macro", zero_division=0)
            if f1 > best_f1:
                best, best_f1 = probe, f1
        assert best is not None
        return best


def _fit(train: FeatureSet, penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # scikit-learn weighs the summed cross-entropy by C and leaves the penalty at 1/2 ||W||^2.
    regression = LogisticRegression(C=1 / (penalty * len(train)), solver="lbfgs", max_iter=1000)
    # L-BFGS makes many small products, between which threads spin while they wait: on two busy cores, 1,300
    # frames of 512 features took ten times as long with two threads as with one.
    with threadpool_limits(1):
        return make_pipeline(StandardScaler(), regression).fit(train.features.astype(np.float64), train.labels)
