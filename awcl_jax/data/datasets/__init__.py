"""Datasets that this package can prepare, each by a TFDS builder of its own."""

import importlib
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from awcl_jax.cache import cache_folder

BUILDERS = {
    "phantom": "awcl_jax.data.datasets.phantom:Phantom",
    "fetal_planes_db": "awcl_jax.data.datasets.fetal_planes_db:FetalPlanesDb",
}
"""Name of a dataset -> where its builder is; imported when it is wanted."""


PHANTOM_PRESETS = ("default", "tiny")


def make_builder(name: str, **settings: Any) -> tfds.core.DatasetBuilder:
    """The builder of a dataset, with settings of its own."""
    module, _, builder = BUILDERS[name].partition(":")
    return getattr(importlib.import_module(module), builder)(**settings)


def prepare_phantom(preset: str) -> Path:
    """Folder of the phantom, made in the user's cache folder where it is not there yet."""
    builder = make_builder("phantom", config=preset, data_dir=cache_folder("datasets"), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_path)
