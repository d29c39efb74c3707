"""Files that are not files."""

import os

import pytest

from awcl_jax.data.images import read_image, read_manifest
from awcl_jax.data.stored import open_dataset
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.run_folder import read_json

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("name", "read"),
    [("scan.png", read_image), ("scans.csv", read_manifest), ("scans.parquet", read_manifest), ("a.json", read_json)],
)
def test_a_named_pipe_is_one_line_and_not_waited_for(tmp_path, name, read):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is not a regular file"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["features.json", "frames-train.array_record-00000-of-00001"])
def test_a_named_pipe_in_a_dataset_is_named(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is not a regular file"):
        open_dataset(tmp_path)
