"""Decoded frames on disk: the same pixels, whatever happened to the file, its disk and its writers."""

import ast
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

import awcl_jax
from awcl_jax.data import decoded, nearest, sector
from awcl_jax.data.decoded import FOLDER, DecodedFrames, open_decoded
from awcl_jax.data.reader import FrameReader, JoinedReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.square import LETTERBOX
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import frame_record, speckle

IDS = [f"f{number}" for number in range(9)]
SLOT = 24 * 24 + 4


@pytest.fixture(autouse=True)
def every_warning():
    decoded._warn.cache_clear()


@pytest.fixture
def dataset(prepare_frames) -> Path:
    """Frames of 32 x 40 pixels with masks, in two splits."""

    def records(ids):
        return [frame_record(name, f"p{name}", mask=(speckle(name) > 127).astype(np.uint8)) for name in ids]

    return prepare_frames(masks=True, train=records(IDS[:6]), test=records(IDS[6:]))


@pytest.fixture
def decodings(monkeypatch) -> list[int]:
    """An entry for each picture that is decoded."""
    seen: list[int] = []
    monkeypatch.setattr(cv2, "imdecode", lambda *args, decode=cv2.imdecode: seen.append(1) or decode(*args))
    return seen


def reader(dataset: Path, *, size: int = 24, split: str | None = None, **options) -> FrameReader:
    index = ScanIndex.from_dataset(dataset)
    return FrameReader(index if split is None else index.split(split), size, 0, **{"disk_cache_gb": 1} | options)


def files(dataset: Path) -> list[Path]:
    return sorted((dataset / FOLDER).iterdir())


@pytest.mark.parametrize("size", [8, 24, 32, 50])
@pytest.mark.parametrize("mask_overlays", [False, True])
def test_images_and_masks_stay_bit_for_bit_and_are_decoded_once(dataset, decodings, size, mask_overlays):
    frames = np.array([7, 0, 3, 3, 8])
    plain = reader(dataset, size=size, mask_overlays=mask_overlays, disk_cache_gb=0)
    expected = plain.read(frames), plain.read_masks(frames)
    assert not (dataset / FOLDER).exists()
    for decoding in (8, 0):  # four frames, each with its mask; then, as in the next run, none
        decodings.clear()
        again = reader(dataset, size=size, mask_overlays=mask_overlays)
        np.testing.assert_array_equal(again.read(frames), expected[0])
        np.testing.assert_array_equal(again.read_masks(frames), expected[1])
        assert len(decodings) == decoding


def test_splits_and_parts_of_an_index_share_a_file(dataset, decodings):
    reader(dataset).read(np.arange(9))
    decodings.clear()
    np.testing.assert_array_equal(
        reader(dataset, split="test").read(np.array([2, 0])),
        reader(dataset, disk_cache_gb=0).read(np.array([8, 6])),
    )
    assert len(decodings) == 2, "those of the reader without a file"
    assert len(files(dataset)) == 1


def test_what_decides_the_pixels_has_its_own_file(dataset):
    for number, options in enumerate(({}, {"size": 25}, {"mask_overlays": True}, {"aspect": LETTERBOX}), 1):
        reader(dataset, **options).read(np.arange(9))
        assert len(files(dataset)) == number


def test_another_version_of_opencv_decodes_again(dataset, decodings, monkeypatch):
    reader(dataset).read(np.arange(9))
    decodings.clear()
    monkeypatch.setattr(cv2, "__version__", "0.0")
    reader(dataset).read(np.arange(9))
    assert len(decodings) == 9


def test_another_search_for_sectors_has_its_own_file(dataset, tmp_path):
    # A later version of the package: a copy that differs in one number of the search.
    package = Path(awcl_jax.__file__).parent
    shutil.copytree(package, tmp_path / "awcl_jax", ignore=shutil.ignore_patterns("__pycache__"))
    search = tmp_path / "awcl_jax/data/sector.py"
    assert "_OUTSIDE = (0.02, " in search.read_text()
    search.write_text(search.read_text().replace("_OUTSIDE = (0.02, ", "_OUTSIDE = (0.0, "))
    code = f"""
from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
index = ScanIndex.from_dataset({str(dataset)!r})
for overlays in (False, True):
    reader = FrameReader(index, 24, 0, mask_overlays=overlays)
    print(reader._name_on_disk("image"), reader._name_on_disk("mask"))
"""
    options = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(tmp_path)}}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **options)
    readers = [reader(dataset), reader(dataset, mask_overlays=True)]
    image, mask, masked, its_mask = (one._name_on_disk(picture) for one in readers for picture in ("image", "mask"))
    found = run.stdout.split()
    assert found[0] == image
    assert found[1] == found[3] == mask == its_mask
    assert found[2].startswith("image-24-squash-without_overlays-")
    assert found[2] != masked


def test_the_search_for_sectors_uses_no_module_whose_source_does_not_count():
    counted = {module.__name__ for module in (sector, nearest)}
    for module in (sector, nearest):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        named = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        named |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert {name for name in named if name.startswith("awcl_jax")} <= counted


def test_joined_datasets_each_have_a_file(dataset, prepare_frames, decodings):
    # The ids are those of the first dataset, and the pictures are not.
    other = prepare_frames("other", train=[frame_record(name, image=255 - speckle(name)) for name in IDS[:3]])
    parts = ScanIndex.from_dataset(dataset), [ScanIndex.from_dataset(other)]
    expected = JoinedReader(*parts, 24, 0).read(np.arange(12))
    for decoding in (12, 0):
        decodings.clear()
        joined = JoinedReader(*parts, 24, 0, disk_cache_gb=1)
        np.testing.assert_array_equal(joined.read(np.arange(12)), expected)
        assert len(decodings) == decoding
    assert len(files(dataset)) == len(files(other)) == 1


def test_a_dataset_that_was_replaced_is_noticed(prepare_frames):
    first = prepare_frames("one", train=[frame_record("x"), frame_record("y")])
    index = ScanIndex.from_dataset(first)
    other = prepare_frames("two", train=[frame_record("y"), frame_record("x")])
    for file in other.glob("*array_record*"):
        file.replace(first / file.name)
    # Another process has read the new dataset, and an index of the old one is still in use.
    reader(first).read(np.arange(2))
    with pytest.raises(InputError, match=r"frame 'x'.*found 'y' instead"):
        FrameReader(index, 24, 0, disk_cache_gb=1).read(np.array([0]))


def cut_short(content: bytearray) -> bytearray:
    return content[: 4 * SLOT + 100]


def with_holes(content: bytearray) -> bytearray:
    for slot in range(9):  # as after a power failure: the file's length is right, some pages never came
        content[slot * SLOT + 512 : (slot + 1) * SLOT] = bytes(SLOT - 512)
    return content


def of_other_frames(content: bytearray) -> bytearray:
    return content[SLOT:] + content[:SLOT]


@pytest.mark.parametrize("damage", [cut_short, with_holes, of_other_frames, lambda content: bytearray(len(content))])
def test_a_damaged_file_is_not_used_and_mended(dataset, decodings, damage):
    expected = reader(dataset, disk_cache_gb=0).read(np.arange(9))
    reader(dataset).read(np.arange(9))
    (file,) = files(dataset)
    file.write_bytes(damage(bytearray(file.read_bytes())))
    np.testing.assert_array_equal(reader(dataset).read(np.arange(9)), expected)
    decodings.clear()
    np.testing.assert_array_equal(reader(dataset).read(np.arange(9)), expected)
    assert not decodings


def test_a_link_of_a_stranger_leads_to_no_file_that_is_written_to(dataset, decodings, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reader(dataset).read(np.arange(9))
    (file,) = files(dataset)
    precious = tmp_path / "precious.txt"
    precious.write_text("of the user")
    file.unlink()
    file.symlink_to(precious)
    reader(dataset).read(np.arange(9))
    assert precious.read_text() == "of the user"
    decodings.clear()
    reader(dataset).read(np.arange(9))  # kept in the user's cache instead
    assert not decodings


def test_a_file_of_another_name_is_not_used(tmp_path):
    image = np.full((24, 24), 7, np.uint8)
    DecodedFrames(tmp_path / "one.pixels", slots=2, size=24).write(1, "x", image)
    (tmp_path / "one.pixels").rename(tmp_path / "two.pixels")
    foreign = DecodedFrames(tmp_path / "two.pixels", slots=2, size=24)
    assert not foreign.read(1, "x", np.empty_like(image))
    foreign.write(1, "x", image)
    out = np.empty_like(image)
    assert foreign.read(1, "x", out)
    np.testing.assert_array_equal(out, image)
    assert not foreign.read(1, "y", out), "the name of the frame counts"


WRITER = """
import sys
from pathlib import Path
import numpy as np
from awcl_jax.data.decoded import DecodedFrames
frames = DecodedFrames(Path(sys.argv[1]), slots=1000, size=256)
print("begun", flush=True)
for slot in np.random.default_rng().permutation(1000).tolist():
    frames.write(slot, str(slot), np.full((256, 256), slot % 255 + 1, np.uint8))
sys.stdin.read()
"""


def test_two_writers_at_once_and_killed(tmp_path):
    file = tmp_path / "x.pixels"
    mine = DecodedFrames(file, slots=1000, size=256)
    for turn in range(3):
        command = [sys.executable, "-c", WRITER, file]
        writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
        try:
            for writer in writers:
                assert writer.stdout is not None
                writer.stdout.readline()
            time.sleep(0.003 * (turn + 1))
            found = _readable(mine)
        finally:
            for writer in writers:
                writer.send_signal(signal.SIGKILL)
                writer.communicate()
        found |= _readable(mine)
        assert found, "nothing was written"


def _readable(frames: DecodedFrames) -> set[int]:
    """Return which of the writers' frames can be read, after checking their pixels."""
    out, found = np.empty((256, 256), np.uint8), set()
    for slot in range(1000):
        if frames.read(slot, str(slot), out):
            assert (out == slot % 255 + 1).all()
            found.add(slot)
    return found


def test_a_disk_that_fills_is_one_line(dataset, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    expected = reader(dataset, disk_cache_gb=0).read(np.arange(9))
    monkeypatch.setattr(os, "pwritev", full)
    for _ in range(2):
        np.testing.assert_array_equal(reader(dataset).read(np.arange(9)), expected)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "No space left on device" in lines[0]
    assert "frames are decoded each time" in lines[0]


@pytest.mark.parametrize(("room", "kept"), [(2.1, True), (1.9, False)])
def test_half_of_the_free_space_is_left(dataset, monkeypatch, capsys, room, kept):
    free = decoded.shutil.disk_usage(dataset)._replace(free=int(room * 9 * SLOT))
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: free)
    reader(dataset).read(np.arange(9))
    assert bool(files(dataset)) is kept
    assert ("more than half" in capsys.readouterr().err) is not kept


def test_a_dataset_larger_than_the_limit_is_one_line(dataset, capsys):
    for split in ("train", "test"):
        reader(dataset, split=split, disk_cache_gb=0.9 * 9 * SLOT / 1e9).read(np.arange(3))
    assert not (dataset / FOLDER).exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert "disk_cache_gb=" in line


def test_a_dataset_that_cannot_be_written_to_uses_the_cache_folder(dataset, decodings, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (dataset / FOLDER).write_text("not a folder")
    reader(dataset).read(np.arange(9))
    decodings.clear()
    reader(dataset).read(np.arange(9))
    assert not decodings
    (folder,) = (tmp_path / "cache").glob("awcl_jax/*")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_without_any_folder_frames_are_decoded(dataset, decodings, monkeypatch, tmp_path, capsys):
    (tmp_path / "cache").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (dataset / FOLDER).write_text("not a folder")
    for _ in range(2):
        reader(dataset).read(np.arange(9))
    assert len(decodings) == 18
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_limit_removes_what_was_used_longest_ago_and_by_nobody_now(tmp_path):
    def opened(name):
        return open_decoded(tmp_path, name, slots=1, size=24, limit_gb=2.5 * SLOT / 1e9)

    def names():
        return {file.stem for file in (tmp_path / FOLDER).iterdir()}

    def age(name, ns):
        os.utime(tmp_path / FOLDER / f"{name}.pixels", ns=(ns, ns))

    opened("old"), opened("older")
    age("old", 20), age("older", 10)
    held = opened("new")
    assert names() == {"old", "new"}
    age("new", 5)
    opened("newest")
    assert names() == {"new", "newest"}, "the oldest is in use"
    assert held is not None


def test_a_limit_below_zero(dataset):
    with pytest.raises(InputError, match="disk_cache_gb=-1"):
        reader(dataset, disk_cache_gb=-1)
