"""Files that are not files."""

import os

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from awcl_jax.data import images
from awcl_jax.data.images import read_image, read_manifest
from awcl_jax.data.stored import open_dataset
from awcl_jax.report import embedding_map
from awcl_jax.runtime.errors import InputError, in_words
from awcl_jax.runtime.files import atomic_write
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


def test_an_npz_that_inflates_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_map, "_MOST_BYTES", 100_000)
    np.savez_compressed(tmp_path / "map.npz", frame_ids=np.zeros(1_000_000, np.uint8))
    with pytest.raises(InputError, match=r"map.npz would unpack to 1,000,\d+ bytes"):
        embedding_map.FrameMap.load(tmp_path / "map.npz")


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("_MOST_ROWS", 1000, "at most 1,000 rows; got 2,000"),
        ("_MOST_TABLE_BYTES", 1_000_000, "at most 0 GB of cells; it has more"),
    ],
)
def test_a_parquet_table_that_inflates_is_refused(tmp_path, monkeypatch, limit, value, message):
    # A cell of 1,000 characters, stored once for 2,000 rows: two million bytes of a file of some thousand.
    file = tmp_path / "scans.parquet"
    parquet.write_table(pa.table({"path": ["x" * 1000] * 2000}), file)
    assert file.stat().st_size < 10_000
    assert read_manifest(file).num_rows == 2000
    monkeypatch.setattr(images, limit, value)
    with pytest.raises(InputError, match=message):
        read_manifest(file)


@pytest.mark.parametrize("write", [lambda part: part.write_text("x"), lambda part: part.open("xb")])
def test_an_error_of_an_atomic_write_names_the_file_that_was_asked_for(tmp_path, write):
    wanted = tmp_path / "none" / "page.html"
    with pytest.raises(FileNotFoundError) as caught, atomic_write(wanted) as part:
        write(part)
    assert caught.value.filename == str(wanted)
    assert in_words(caught.value) == f"No such file or directory: {wanted}"
