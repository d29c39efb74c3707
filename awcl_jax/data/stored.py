"""Prepared datasets, opened without running any code that they name."""

import json
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from google.protobuf import json_format
from tensorflow_datasets.core.proto import feature_generated_pb2 as proto

from awcl_jax.runtime.errors import InputError, first_line
from awcl_jax.runtime.files import require_plain_tree

_KINDS = ("FeaturesDict", "ClassLabel", "Image", "LabeledImage", "Scalar", "Tensor", "Text")
_CLASSES = {f"{kind.__module__}.{kind.__name__}" for kind in (getattr(tfds.features, name) for name in _KINDS)}


def open_dataset(path: Path) -> tfds.core.DatasetBuilder:
    """Open the dataset in a folder with TFDS.

    Its `features.json` names Python classes, and TFDS imports their modules, whichever they are and wherever Python
    finds them. So the file is checked first, and nothing is imported if it names a class that frames do not use.

    Args:
      path: folder with `dataset_info.json` and `features.json`.

    Raises:
      InputError: it has no dataset, or one that is damaged or has features of another class.
    """
    require_plain_tree(path, links=True)
    try:
        described = json_format.ParseDict(json.loads((path / "features.json").read_bytes()), proto.Feature())
        foreign = sorted(set(_foreign(described)))
        builder = None if foreign else tfds.builder_from_directory(path)
    except Exception as error:  # TFDS and protobuf raise many kinds here
        raise InputError(f"The dataset {path} cannot be opened ({first_line(error)}). Prepare it again.") from error
    if builder is None:
        raise InputError(
            f"The dataset {path} has features of the class {foreign[0]!r}, which was not run. Frames may use only "
            f"{', '.join(_KINDS)} of TFDS."
        )
    return builder


def _foreign(feature: proto.Feature) -> Iterator[str]:
    """Yield the classes of a feature, and of those within it, that frames do not use."""
    if feature.python_class_name not in _CLASSES:
        yield feature.python_class_name
    if feature.WhichOneof("content") == "json_feature":  # written by older TFDS; it may name classes, too
        yield f"{feature.python_class_name} as JSON"
    for inner in feature.features_dict.features.values():
        yield from _foreign(inner)
