"""Prepared datasets, opened without their builders and without running anything of theirs."""

import json
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from google.protobuf import json_format
from tensorflow_datasets.core.proto import feature_generated_pb2 as proto

from awcl_jax.runtime.errors import InputError, first_line

_KINDS = ("FeaturesDict", "ClassLabel", "Image", "LabeledImage", "Scalar", "Tensor", "Text")
_CLASSES = {f"{kind.__module__}.{kind.__name__}" for kind in (getattr(tfds.features, name) for name in _KINDS)}


def open_dataset(path: Path) -> tfds.core.DatasetBuilder:
    """The dataset in a folder, as TFDS reads it.

    Its `features.json` names Python classes, and TFDS imports the modules that these are in: whichever the file says,
    from wherever Python finds them. So the file is looked at before, and of another class than those that frames are
    made of nothing is imported.

    Args:
      path: folder with `dataset_info.json` and `features.json`.

    Raises:
      InputError: there is no dataset in it, it is damaged, or it has features of another class.
    """
    try:
        described = json_format.ParseDict(json.loads((path / "features.json").read_bytes()), proto.Feature())
        foreign = sorted(set(_foreign(described)))
        builder = None if foreign else tfds.builder_from_directory(path)
    except Exception as error:  # TFDS and protobuf raise many kinds here
        raise InputError(f"The dataset {path} cannot be opened ({first_line(error)}): prepare it again.") from error
    if builder is None:
        raise InputError(
            f"The dataset {path} has features of the class {foreign[0]!r}, and nothing of it was run: frames are of "
            f"{', '.join(_KINDS)} of TFDS."
        )
    return builder


def _foreign(feature: proto.Feature) -> Iterator[str]:
    """Classes of a feature and of those within it that frames have no need of."""
    if feature.python_class_name not in _CLASSES:
        yield feature.python_class_name
    if feature.WhichOneof("content") == "json_feature":  # what an older TFDS wrote: it may name classes, too
        yield f"{feature.python_class_name} as JSON"
    for inner in feature.features_dict.features.values():
        yield from _foreign(inner)
