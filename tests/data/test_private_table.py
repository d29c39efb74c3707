"""The table of the files that frames were made from is beside the dataset, and only its owner reads it."""

import os
import stat

import pyarrow as pa
import pytest
from pyarrow import parquet

from awcl_jax.data.private_table import SCHEMA, private_table_of, read_private_table, write_private_table
from awcl_jax.runtime.errors import InputError

pytestmark = pytest.mark.quick

ROWS = [{"frame_id": "f1", "path": "/a/b.mp4", "frame": 8}, {"frame_id": "f2", "path": "/a/ö.png", "frame": None}]


def batches():
    yield pa.RecordBatch.from_pylist(ROWS[:1], SCHEMA)
    yield pa.RecordBatch.from_pylist(ROWS[1:], SCHEMA)


def test_it_is_outside_of_what_is_copied_and_private(tmp_path):
    dataset = tmp_path / "out/ours/1.0.0"
    dataset.mkdir(parents=True)
    assert read_private_table(dataset) is None
    before = os.umask(0)
    try:
        path = write_private_table(dataset, batches())
    finally:
        os.umask(before)
    assert path == private_table_of(dataset) == tmp_path / "out.private/ours.parquet"
    assert [stat.S_IMODE(place.stat().st_mode) for place in (path, path.parent)] == [0o600, 0o700]
    assert read_private_table(dataset).to_pylist() == ROWS
    assert [place.name for place in path.parent.iterdir()] == ["ours.parquet"]
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_another_table_is_refused(tmp_path):
    path = private_table_of(tmp_path / "out/ours/1.0.0")
    path.parent.mkdir(parents=True)
    parquet.write_table(pa.table({"path": ["a"]}), path)
    with pytest.raises(InputError, match="must have the columns frame_id, path, frame; got path"):
        read_private_table(tmp_path / "out/ours/1.0.0")
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        read_private_table(tmp_path / "out/ours/1.0.0")
