"""The private table of an ingest leads from a stored frame back to its file and its place in it."""

import os
import shutil

import cv2
import numpy as np
import pytest

from awcl_jax.data.private_table import private_table_of, read_private_table
from awcl_jax.data.records import Records
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest import command as ingest
from tests.helpers.own_files import draw_files, moving_disc, write_dicom, write_video

pytestmark = pytest.mark.quick


def prepared(*args: object) -> ScanIndex:
    ingest.main([*map(str, args), "--workers=1"])
    return ScanIndex.from_dataset(next(str(arg)[6:] for arg in args if str(arg).startswith("--out=")))


def stored(index: ScanIndex) -> dict[str, np.ndarray]:
    records = Records(index.path)
    read = [records.read(split, at) for split in records.splits for at in range(records.count(split))]
    decode = lambda record: cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_GRAYSCALE)  # noqa: E731
    return {record["frame_id"].decode(): decode(record) for record in read}


def test_pictures_lead_back_to_their_files(tmp_path, monkeypatch):
    draw_files(tmp_path / "in", *(f"A/p{number // 2}/{number}.png" for number in range(8)))
    monkeypatch.chdir(tmp_path)  # paths are absolute all the same
    index = prepared("folder", "--source=in", "--out=out")
    images = stored(index)
    table = read_private_table(index.path).to_pylist()
    assert [row["frame_id"] for row in table] == index.frame_ids.tolist()
    assert {row["path"] for row in table} == {str(path) for path in (tmp_path / "in").rglob("*.png")}
    for row in table:
        np.testing.assert_array_equal(cv2.imread(row["path"], cv2.IMREAD_GRAYSCALE), images[row["frame_id"]])
    names = [place.name for place in (tmp_path / "out").rglob("*")]
    assert not [name for name in names if "private" in name or name.endswith(".parquet")]


def test_a_name_that_is_not_utf_8_has_escapes(tmp_path):
    draw_files(tmp_path / "in", *(f"A/p{number}/{number}.png" for number in range(4)))
    os.rename(tmp_path / "in/A/p0", os.fsencode(tmp_path / "in/A") + b"/K\xe4te")  # noqa: PTH104  bytes
    index = prepared("folder", f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}")
    paths = [row["path"] for row in read_private_table(index.path).to_pylist()]
    assert rf"{tmp_path}/in/A/K\xe4te/0.png" in paths


def test_frames_of_a_clip_have_their_numbers(tmp_path):
    clips = [moving_disc(10, seed=seed) for seed in range(4)]
    clips[2][3] = clips[2][0]  # found again: left out
    clips[2][6] = 7  # blank: left out
    for number, clip in enumerate(clips):
        (tmp_path / f"in/p{number}").mkdir(parents=True)
        write_video(tmp_path / f"in/p{number}/a.avi", clip, "ffv1")
    index = prepared("video", f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--every=3")
    images, seen = stored(index), {}
    for row in read_private_table(index.path).to_pylist():
        clip = int(row["path"].split("/p")[-1][0])
        seen.setdefault(clip, []).append(row["frame"])
        np.testing.assert_allclose(images[row["frame_id"]].astype(int), clips[clip][row["frame"]].astype(int), atol=2)
    assert seen == {0: [0, 3, 6, 9], 1: [0, 3, 6, 9], 2: [0, 9], 3: [0, 3, 6, 9]}


@pytest.mark.parametrize(("flags", "kept"), [((), False), (("--keep_paths",), True)])
def test_of_dicom_only_what_is_asked_for(tmp_path, monkeypatch, capsys, flags, kept):
    monkeypatch.setenv("AWCL_ID_KEY", "a key that is long enough")
    for number in range(4):
        write_dicom(
            tmp_path / f"in/{number}.dcm", moving_disc(3, seed=number), patient=f"p{number}", study=f"1.{number}"
        )
    args = ("dicom", f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--every=2")
    index = prepared(*args, *flags)
    table = read_private_table(index.path)
    assert (table is not None) == kept
    assert ("keep it private" in capsys.readouterr().out) == kept
    if kept:
        found = sorted((row["path"][-5:], row["frame"]) for row in table.to_pylist())
        assert found == [(f"{number}.dcm", frame) for number in range(4) for frame in (0, 2)]
    else:
        prepared(*args, "--keep_paths")
        assert "written only when a dataset is prepared" in capsys.readouterr().out
        assert not private_table_of(index.path).exists()


def test_an_earlier_table_is_deleted_if_none_is_wanted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AWCL_ID_KEY", "a key that is long enough")
    draw_files(tmp_path / "in", *(f"A/p{number}/{number}.png" for number in range(4)))
    args = ("folder", f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}")
    table = private_table_of(prepared(*args).path)
    prepared(*args)
    assert table.exists()
    prepared(*args, "--no-keep_paths")  # of a dataset that is prepared
    assert f"Deleted {table}, which an earlier command wrote" in capsys.readouterr().out
    assert not table.parent.exists()
    for flags in ((), ("--no-keep_paths",)):  # of one that was deleted, by name
        table.parent.mkdir()
        table.write_text("Mary")
        table.with_name("other.parquet").write_text("of another dataset")
        for number in range(4):
            clip = moving_disc(3, seed=number)
            write_dicom(tmp_path / f"dicom/{number}.dcm", clip, patient=f"p{number}", study=f"1.{number}")
        shutil.rmtree(tmp_path / "out")
        prepared("dicom", f"--source={tmp_path / 'dicom'}", f"--out={tmp_path / 'out'}", *flags)
        assert f"Deleted {table}" in capsys.readouterr().out
        assert [path.name for path in table.parent.iterdir()] == ["other.parquet"]
        shutil.rmtree(table.parent)


def test_a_folder_that_cannot_be_written_to_costs_only_the_table(tmp_path, capsys):
    draw_files(tmp_path / "in", *(f"A/p{number}/{number}.png" for number in range(4)))
    (tmp_path / "out.private").write_text("a file")
    index = prepared("folder", f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}")
    assert len(index) == 4
    assert "warning: no private table of source files was written (File exists" in capsys.readouterr().out
