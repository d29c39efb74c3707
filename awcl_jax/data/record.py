"""The record that all datasets share: one frame with its scan, patient, machine and labels."""

import numpy as np
import tensorflow_datasets as tfds

from awcl_jax.data.anatomy import Taxonomy

HEAD_CIRCUMFERENCE = "hc_mm"
"""Measure: the circumference of the head as its publisher measured it."""

PIXEL_HEIGHT = "pixel_height_mm"
"""Measure: the height of a pixel, where pixels are not square; `pixel_mm` is then its width."""


def frame_features(
    taxonomy: Taxonomy, *, mask_names: tuple[str, ...] = (), measures: tuple[str, ...] = ()
) -> tfds.features.FeaturesDict:
    """Return the TFDS features of a frame.

    Args:
      taxonomy: names of `anatomy_fine` and `anatomy_coarse`; both labels may be UNLABELLED (-1).
      mask_names: classes of the values 0, 1, ... in the mask; without them the dataset has no masks.
      measures: further lengths in millimetres that the dataset has for its frames, such as HEAD_CIRCUMFERENCE.

    Returns:
      image: uint8 [h, w, 1]; frame_id, scan_id, patient_id and machine as text; the two labels; `pixel_mm`, the edge
      of a pixel in millimetres (NaN where it is unknown); the `measures`, NaN where one is unknown; and, with
      `mask_names`, mask: uint8 [h, w, 1].
    """
    features = {
        "image": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        "frame_id": tfds.features.Text(),
        "scan_id": tfds.features.Text(),
        "patient_id": tfds.features.Text(),
        "machine": tfds.features.Text(),
        "anatomy_fine": tfds.features.ClassLabel(names=taxonomy.fine),
        "anatomy_coarse": tfds.features.ClassLabel(names=taxonomy.coarse),
        "pixel_mm": tfds.features.Scalar(np.float32),
    }
    features |= {name: tfds.features.Scalar(np.float32) for name in measures}
    if mask_names:
        features["mask"] = tfds.features.LabeledImage(
            labels=list(mask_names), shape=(None, None, 1), encoding_format="png"
        )
    return tfds.features.FeaturesDict(features)
