"""Files that are not files, and files that are written whole."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from awcl_jax.data import images
from awcl_jax.data.images import read_image, read_manifest
from awcl_jax.data.stored import open_dataset
from awcl_jax.report import embedding_map
from awcl_jax.runtime import files
from awcl_jax.runtime.errors import InputError, in_words
from awcl_jax.runtime.files import atomic_folder, atomic_write
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


def test_an_error_in_an_atomic_folder_names_the_file_as_it_would_be_called(tmp_path):
    with pytest.raises(OSError, match="No such file") as caught, atomic_folder(tmp_path / "exported") as part:
        (part / "none" / "README.md").write_text("x")
    assert caught.value.filename == str(tmp_path / "exported" / "none" / "README.md")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_write_that_fails_names_its_file(number, tmp_path):
    # As Python raises it of a write: the name was that of the open.
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "page.html"):  # noqa: PT011
        raise OSError(number, os.strerror(number))
    assert in_words(caught.value) == f"{os.strerror(number)}: {tmp_path / 'page.html'}"
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "page.html"):  # noqa: PT011
        raise OSError(errno.EIO, "read elsewhere")
    assert in_words(caught.value) == "read elsewhere"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_a_text_of_many_rows_is_not_written_out_before_it_is_refused(tmp_path, monkeypatch, kind):
    # 20,000 characters, stored once for 4,096 rows: 82 MB.
    table = pa.table({"path": pa.array(["x" * 20_000], kind).take(pa.array([0] * 4096))})
    parquet.write_table(table, tmp_path / "scans.parquet")
    monkeypatch.setattr(images, "_MOST_TABLE_BYTES", 10_000_000)
    usual, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counted)
    try:
        with pytest.raises(InputError, match="at most 0 GB of cells"):
            read_manifest(tmp_path / "scans.parquet")
    finally:
        pa.set_memory_pool(usual)
    assert counted.max_memory() < 10_000_000


def test_a_table_keeps_its_types_and_cells(tmp_path):
    table = pa.table(
        {
            "path": ["a", None, "c"] * 2000,
            "text": pa.array(["x", "y", None] * 2000, pa.large_string()),
            "number": range(6000),
            "named": pa.array(["p", "q", "q"] * 2000).dictionary_encode(),
            "coded": pa.array([1, 2, 2] * 2000).dictionary_encode(),
            "bytes": [b"1", b"", None] * 2000,
            "list": [["a"], [], None] * 2000,
        }
    )
    parquet.write_table(table, tmp_path / "scans.parquet")
    found = images._read_parquet(tmp_path / "scans.parquet")
    assert found.equals(parquet.read_table(tmp_path / "scans.parquet"))


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_leaves_goes_with_the_next_one(tmp_path, kind):
    path = tmp_path / "out[1].txt"
    other = tmp_path / ".out[1].txt.notes.part"  # by somebody else
    other.write_text("kept")
    pipe = tmp_path / f".out[1].txt.{32 * '0'}.part"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "tests.helpers.killed_writer", kind, str(path)]
    for _ in range(2):
        assert subprocess.run(command, cwd=Path(__file__).parents[2], check=False, timeout=60).returncode == -9
        # The second has removed what the first left.
        assert len(names(tmp_path)) == 3
        assert not path.exists()
    with {"file": atomic_write, "folder": atomic_folder}[kind](path) as part:
        assert names(tmp_path) == sorted([other.name, part.name, pipe.name])
        (part if kind == "file" else part / "inside").write_text("whole")
    assert names(tmp_path) == sorted([other.name, path.name, pipe.name])
    assert (path if kind == "file" else path / "inside").read_text() == "whole"


def test_a_folder_that_exists_is_filled_and_not_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    identity = folder.stat().st_ino
    monkeypatch.chdir(folder)
    with atomic_folder(folder) as part:
        (part / "b.txt").write_text("first")
        (part / "a").mkdir()
        (part / "a" / "c.txt").write_text("second")
        assert files.vacant(folder)  # to another: what is begun counts as nothing
    assert names(Path()) == ["a", "b.txt"]  # as seen from within
    assert (folder / "a" / "c.txt").read_text() == "second"
    assert folder.stat().st_ino == identity
    assert names(tmp_path) == ["out"]
    assert not files.vacant(folder)
    assert not files.vacant(folder / "b.txt")
    assert files.vacant(tmp_path / "new")


def test_an_error_in_a_folder_that_exists_names_the_file_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="No such file") as caught, atomic_folder(tmp_path) as part:
        (part / "none" / "README.md").write_text("x")
    assert caught.value.filename == str(tmp_path / "none" / "README.md")
    assert names(tmp_path) == []


def test_a_writer_at_work_keeps_its_part(tmp_path):
    path = tmp_path / "out.txt"
    with atomic_write(path) as first:
        first.write_text("first")
        with atomic_write(path) as second:
            second.write_text("second")
        assert first.exists()
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    with pytest.raises(FileNotFoundError), atomic_write(path) as part:
        part.with_name("missing").read_text()
    assert (names(tmp_path), path.read_text()) == (["out.txt"], "first")


def test_writers_at_once_do_not_take_each_others_parts(tmp_path):
    faults = []

    def write():
        try:
            for _ in range(50):
                with atomic_write(tmp_path / "out.txt") as part:
                    part.write_text("whole")
        except OSError as error:
            faults.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert names(tmp_path) == ["out.txt"]


def test_a_disk_without_locks_is_written_to(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError("no locks")

    (tmp_path / f".out.txt.{32 * '0'}.part").write_text("perhaps of a living process")
    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with atomic_write(tmp_path / "out.txt") as part:
        part.write_text("whole")
    assert names(tmp_path) == [f".out.txt.{32 * '0'}.part", "out.txt"]
