"""Files of features hold what was given, in either form, and are never half there."""

import csv
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
    with pytest.raises(InputError, match=r"\.parquet or \.npz or \.csv; got .*f\.txt"):
        write_table(tmp_path / "f.txt", [table(1)], provenance=MADE)


def test_a_csv_has_a_column_for_each_value_and_no_formulas(tmp_path):
    parts = [table(3), table(2, 3)]
    formulas = ["=1+1", "-x", "-3.5", None, "plain, with a comma"]
    note = pa.array(formulas, pa.string())
    parts = [
        part.append_column("=note", note.slice(start, part.num_rows)) for part, start in zip(parts, (0, 3), strict=True)
    ]
    assert write_table(tmp_path / "f.csv", iter(parts), provenance=MADE) == 5
    with (tmp_path / "f.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    features = [f"features_{i}" for i in range(2)]
    ids = [f"neighbour_ids_{i}" for i in range(2)]
    same = [f"neighbour_same_scan_{i}" for i in range(2)]
    assert list(rows[0]) == ["id", "scan_id", "age", "day", "file", *features, *ids, *same, "'=note"]
    assert [(float(row["features_0"]), float(row["features_1"])) for row in rows] == [(i, -i) for i in range(5)]
    assert [row["neighbour_ids_1"] for row in rows] == ["1", "3", "5", "1", "3"]
    assert [(row["neighbour_same_scan_0"], row["neighbour_same_scan_1"]) for row in rows] == [("true", "")] * 5
    assert [row["scan_id"] for row in rows] == ["", "s1", "s2", "", "s4"]
    assert [row["age"] for row in rows] == ["0", "", "2", "3", "4"]
    assert [row["'=note"] for row in rows] == ["'=1+1", "'-x", "-3.5", "", "plain, with a comma"]
    assert rows[0]["day"] == "2020-01-01"


def test_a_csv_keeps_float32_exactly(tmp_path):
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    write_table(tmp_path / "f.csv", [pa.table({"features": list_column(values)})], provenance=MADE)
    read = np.loadtxt(tmp_path / "f.csv", delimiter=",", skiprows=1, dtype=np.float32)
    np.testing.assert_array_equal(read, values)


def test_a_column_that_the_csv_also_makes_is_bad_input(tmp_path):
    taken = table(1).append_column("features_1", pa.array(["x"]))
    with pytest.raises(InputError, match="column 'features_1', which the CSV of features also has"):
        write_table(tmp_path / "f.csv", [taken], provenance=MADE)
    assert not any(tmp_path.iterdir())


def test_a_list_without_values_in_a_later_table_is_empty_cells(tmp_path):
    boxes = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, 4]), 2)
    nothing = pa.array([None, [5, 6]], boxes.type)
    parts = [pa.table({"id": ["a", "b"], "box": boxes}), pa.table({"id": ["c", "d"], "box": nothing})]
    assert write_table(tmp_path / "f.csv", iter(parts), provenance=MADE) == 4
    with (tmp_path / "f.csv").open(newline="") as file:
        rows = [(row["box_0"], row["box_1"]) for row in csv.DictReader(file)]
    assert rows == [("1", "2"), ("3", "4"), ("", ""), ("5", "6")]


@pytest.mark.parametrize("end", ["npz", "csv"])
def test_times_of_every_resolution_can_be_written(end, tmp_path):
    at = datetime.time(9, 30, 15)
    columns = {
        "second": pa.array([at, None], pa.time32("s")),
        "whole": pa.array([at, at], pa.time64("us")),
        "nano": pa.array([1_600_000_000_000_000_001, None], pa.timestamp("ns")),
        "nano_of_day": pa.array([1, 2], pa.time64("ns")),
    }
    write_table(tmp_path / f"f.{end}", [pa.table(columns)], provenance=MADE)
    if end == "npz":
        with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
            found = {name: arrays[name].tolist() for name in columns}
        assert found["second"] == ["09:30:15", ""]
    else:
        with (tmp_path / "f.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        found = {name: [row[name] for row in rows] for name in columns}
    assert found["whole"][1].startswith("09:30:15")
    assert found["nano"][0].endswith("000000001")
    assert found["nano_of_day"][1] == "00:00:00.000000002"
