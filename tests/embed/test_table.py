"""Files of features hold what was given, in either form, and are never half there."""

import datetime
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from awcl_jax.embed.table import list_column, matrix, write_table
from awcl_jax.runtime.errors import InputError

pytestmark = pytest.mark.quick

MADE = {"encoder": "runs/a"}


def table(rows, start=0):
    numbers = np.arange(start, start + rows)
    features = np.stack([numbers, -numbers], axis=1).astype(np.float32)
    return pa.table(
        {
            "id": [f"frame {i}" for i in numbers],
            "scan_id": pa.array([None if i % 3 == 0 else f"s{i}" for i in numbers], pa.string()),
            "age": pa.array([None if i == 1 else int(i) for i in numbers], pa.int64()),
            "day": [datetime.date(2020, 1, 1)] * rows,
            "file": ["x"] * rows,  # what an argument of numpy.savez is called
            "features": list_column(features),
            "neighbour_ids": pa.FixedSizeListArray.from_arrays(pa.array([f"{i}" for i in range(2 * rows)]), 2),
            "neighbour_same_scan": pa.FixedSizeListArray.from_arrays(pa.array([True, None] * rows), 2),
        }
    )


def test_parquet_returns_the_tables_in_full_row_groups(tmp_path):
    parts = [table(1000, start) for start in range(0, 9000, 1000)]
    assert write_table(tmp_path / "f.parquet", iter(parts), provenance=MADE) == 9000
    file = parquet.ParquetFile(tmp_path / "f.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4096, 4096, 808]
    assert file.read().equals(pa.concat_tables(parts))
    assert json.loads(file.schema_arrow.metadata[b"awcl_jax"]) == MADE
    assert [f.name for f in tmp_path.iterdir()] == ["f.parquet"]


def test_an_npz_holds_the_same_without_objects(tmp_path):
    parts = [table(3), table(2, 3)]
    assert write_table(tmp_path / "f.npz", iter(parts), provenance=MADE) == 5
    with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
        assert arrays["features"].dtype == np.float32
        np.testing.assert_array_equal(arrays["features"], [[i, -i] for i in range(5)])
        assert arrays["id"].tolist() == [f"frame {i}" for i in range(5)]
        assert arrays["scan_id"].tolist() == ["", "s1", "s2", "", "s4"]
        assert arrays["age"].tolist() == ["0", "", "2", "3", "4"]
        assert arrays["day"][0] == np.datetime64("2020-01-01")
        assert arrays["neighbour_ids"].tolist()[:3] == [["0", "1"], ["2", "3"], ["4", "5"]]
        assert arrays["neighbour_same_scan"][0].tolist() == ["True", ""]
        assert json.loads(str(arrays["awcl_jax"])) == MADE
        assert set(arrays) == {*parts[0].column_names, "awcl_jax"}


def test_a_matrix_is_that_of_its_own_rows():
    np.testing.assert_array_equal(matrix(table(5).slice(2, 2), "features"), [[2, -2], [3, -3]])
    np.testing.assert_array_equal(matrix(pa.concat_tables([table(1), table(1, 1)]), "features"), [[0, 0], [1, -1]])


@pytest.mark.parametrize("end", ["parquet", "npz"])
def test_what_fails_midway_leaves_the_file_before(end, tmp_path):
    out = tmp_path / f"f.{end}"
    out.write_text("before")

    def breaking():
        yield table(5000)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_table(out, breaking(), provenance=MADE)
    assert [f.name for f in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "before"


def test_another_end_is_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"\.parquet or \.npz; got .*f\.csv"):
        write_table(tmp_path / "f.csv", [table(1)], provenance=MADE)
