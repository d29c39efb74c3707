"""Frames from any source, in order, with their labels."""

import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from awcl_jax.data.sources import open_source, read_batches
from awcl_jax.data.square import Square, resize_frame
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import frame_record, speckle

pytestmark = pytest.mark.quick

UNKNOWN = {"anatomy_fine": -1, "anatomy_coarse": -1}
COLUMNS = ["id", "scan_id", "patient_id", "machine", "anatomy", "split"]


def fill(folder, *names):
    for name in names:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(speckle(name)).save(path)


def read(source, row):
    return source.reader(Square(16))(row)


def small(name):
    return resize_frame(speckle(name), 16)


def test_a_dataset_gives_its_frames_with_their_labels(prepare_frames):
    path = prepare_frames(
        train=[frame_record("a", "p"), frame_record("b", "q", **UNKNOWN)],
        test=[frame_record("c", "r", anatomy_fine=-1)],
    )
    source = open_source(path.parents[1])
    assert source.labels.column_names == COLUMNS
    assert source.labels.to_pylist() == [
        dict(zip(COLUMNS, cells, strict=True))
        for cells in (
            ("a", "p-s", "p", "Aloka", "femur", "train"),
            ("b", "q-s", "q", "Aloka", None, "train"),
            ("c", "r-s", "r", "Aloka", "femur", "test"),  # of which only the region is known
        )
    ]
    for row, name in enumerate("abc"):
        np.testing.assert_array_equal(read(source, row), small(name))
    test = open_source(path, split="test")
    assert test.labels["id"].to_pylist() == ["c"]
    np.testing.assert_array_equal(read(test, 0), small("c"))
    with pytest.raises(InputError, match="no split 'val'"):
        open_source(path, split="val")


def test_a_folder_gives_the_pictures_in_it_and_below(tmp_path):
    fill(tmp_path, "z", "s1/b", "s1/a")
    source = open_source(tmp_path)
    assert source.labels.to_pydict() == {"id": ["s1/a.png", "s1/b.png", "z.png"]}
    for row, name in enumerate(("s1/a", "s1/b", "z")):
        np.testing.assert_array_equal(read(source, row), small(name))


def test_one_picture_is_a_source(tmp_path):
    fill(tmp_path, "a", "b")
    source = open_source(tmp_path / "b.png")
    assert source.labels.to_pydict() == {"id": ["b.png"]}
    np.testing.assert_array_equal(read(source, 0), small("b"))


def test_a_table_lists_files_anywhere_and_keeps_its_columns(tmp_path):
    fill(tmp_path / "here", "s/a")
    fill(tmp_path / "there", "b")
    table = pa.table({"age": [3, 4], "path": ["s/a.png", str(tmp_path / "there" / "b.png")], "scan_id": ["x", None]})
    parquet.write_table(table, tmp_path / "here" / "scans.parquet")
    source = open_source(tmp_path / "here" / "scans.parquet")
    assert source.labels.to_pydict() == {"id": table["path"].to_pylist(), **table.to_pydict()}
    np.testing.assert_array_equal(read(source, 0), small("s/a"))
    np.testing.assert_array_equal(read(source, 1), small("b"))


def test_a_tables_own_id_stays(tmp_path):
    fill(tmp_path, "a")
    (tmp_path / "scans.csv").write_text("id,path\n007,a.png\n008,\n")
    source = open_source(tmp_path / "scans.csv")
    assert source.labels.to_pydict() == {"id": ["007", "008"], "path": ["a.png", None]}
    with pytest.raises(InputError, match=r"Row 2 of .*: its path is empty"):
        read(source, 1)


def test_a_table_of_another_system_is_read_as_it_was_meant(tmp_path):
    fill(tmp_path, "s/a")
    lines = ["sep=;", "path;patient_id;anatomy;note", r"s\a.PNG;nan;NA;NA", "s/a.png;None;femur;"]
    (tmp_path / "scans.csv").write_text("\n".join(lines) + "\n")
    source = open_source(tmp_path / "scans.csv")
    assert source.labels.to_pydict() == {
        "id": [r"s\a.PNG", "s/a.png"],
        "path": [r"s\a.PNG", "s/a.png"],
        "patient_id": [None, None],
        "anatomy": [None, "femur"],
        "note": ["NA", None],
    }
    for row in (0, 1):
        np.testing.assert_array_equal(read(source, row), small("s/a"))
    (tmp_path / "long.csv").write_text(f"path\n{'x' * 300}.png\n")
    with pytest.raises(InputError, match="File name too long"):
        read(open_source(tmp_path / "long.csv"), 0)


@pytest.mark.parametrize(
    ("name", "split", "said"),
    [
        ("none", None, "no file or folder"),
        ("empty", None, "neither a prepared dataset nor pictures"),
        ("notes.txt", None, r"ends in \.png.*\.parquet, \.xlsx; got .*notes\.txt"),
        ("a.png", "test", "--split needs a prepared dataset"),
    ],
)
def test_what_has_no_frames_is_bad_input(name, split, said, tmp_path):
    fill(tmp_path, "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=said):
        open_source(tmp_path / name, split=split)


def counting(count, bad=()):
    """A reader of a source whose frames hold their row, and their number."""

    def read(row):
        if row in bad:
            raise InputError(f"frame {row} is bad")
        time.sleep(0.001 * (row % 3))  # threads finish in another order than they began
        return np.full((2, 2), row, np.uint8)

    return read, count


@pytest.mark.parametrize("threads", [1, 3, None])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 23, 50])
def test_batches_hold_every_frame_once_in_order(batch_size, threads):
    bad = {0, 8, 9, 10, 11, 22}
    batches = list(read_batches(*counting(23, bad), batch_size=batch_size, threads=threads))
    rows = np.concatenate([batch.rows for batch in batches])
    assert rows.tolist() == [row for row in range(23) if row not in bad]
    for batch in batches:
        assert batch.images[:, 0, 0].tolist() == batch.rows.tolist()
    faults = {row: fault for batch in batches for row, fault in batch.faults.items()}
    assert faults == {row: f"frame {row} is bad" for row in bad}


def test_no_more_is_read_ahead_than_a_few_batches():
    begun, lock = set(), threading.Lock()

    def remember(row):
        with lock:
            begun.add(row)
        return np.zeros((1, 1), np.uint8)

    batches = read_batches(remember, 1000, batch_size=2, threads=2)
    next(batches)
    time.sleep(0.3)
    assert len(begun) <= 2 * (1 + 2 + 4)  # what was taken, what threads are at, what is held ready
