"""Features of frames with their labels and patients, the input of every evaluator of a frozen encoder."""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float32, Int

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Encoder features of n frames.

    Attributes:
      features: [n, f], finite.
      labels: [n] anatomy of each frame, UNLABELLED for none.
      patients: [n] patient of each frame.

    Raises:
      InputError: the arrays differ in length, or a feature is not finite.
    """

    features: Float32[np.ndarray, "n f"]
    labels: Int[np.ndarray, " n"]
    patients: Int[np.ndarray, " n"]

    def __post_init__(self) -> None:
        lengths = (len(self.features), len(self.labels), len(self.patients))
        if len(set(lengths)) != 1:
            raise InputError(f"Features, labels and patients must have the same length; got {lengths}.")
        broken = np.count_nonzero(~np.isfinite(self.features).all(axis=-1))
        if broken:
            raise InputError(
                f"Features must be finite; those of {broken} of {len(self.features)} frames are not. "
                "The encoder has diverged: evaluate an earlier checkpoint or lower the learning rate."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def labelled(self) -> "FeatureSet":
        """Return only the frames with a label.

        Raises:
          InputError: there are none.
        """
        kept = self.labels != UNLABELLED
        if not kept.any():
            raise InputError(f"An evaluator needs labelled frames; none of these {len(self)} frames has a label.")
        return FeatureSet(self.features[kept], self.labels[kept], self.patients[kept])


def check_patients_apart(**sets: FeatureSet) -> None:
    """Reject sets that share a patient: frames of one patient are alike, so a test on them would be too good.

    Args:
      **sets: the feature sets by name, as in `check_patients_apart(train=train, test=test)`.

    Raises:
      InputError: two of the sets have a patient in common.
    """
    for (one, ones), (other, others) in itertools.combinations(sets.items(), 2):
        shared = np.intersect1d(ones.patients, others.patients)
        if shared.size:
            raise InputError(
                f"A patient must be in one split only; {shared.size} are in both {one} and {other} "
                f"(the first is {shared[0]}). Split by patient, not by frame."
            )
