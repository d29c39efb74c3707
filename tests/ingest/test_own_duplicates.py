"""Copies are left out and counted; copies that contradict each other are never trusted."""

import json
import shutil
from pathlib import Path

import pytest

from awcl_jax.data.private_table import read_private_table
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest import command as ingest
from tests.helpers.own_files import draw_files, moving_disc, write_video

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("AWCL_ID_KEY", raising=False)


def run(capsys, out: Path, *args: object) -> tuple[dict[str, str], str]:
    """File -> stored anatomy, empty if it failed; and all that was printed."""
    try:
        ingest.main([*map(str, args), f"--out={out}", "--workers=1"])
    except SystemExit:
        return {}, capsys.readouterr().err
    printed, err = capsys.readouterr()
    index = ScanIndex.from_dataset(out)
    names = dict(zip(index.frame_ids.tolist(), index.fine.tolist(), strict=True))
    found = {
        Path(row["path"]).name: (*index.fine_names, "")[names[row["frame_id"]]]
        for row in read_private_table(index.path).to_pylist()
        if row["frame_id"] in names
    }
    return found, err + printed


def table(folder: Path, *rows: str) -> Path:
    """A table of files 0.png to 5.png, and of copies of 0.png, in the columns path, scan_id, patient_id, anatomy."""
    draw_files(folder, *(f"{n}.png" for n in range(6)))
    for name in ("copy1.png", "copy2.png", "copy3.png", "copy4.png"):
        shutil.copy(folder / "0.png", folder / name)
    whole = [f"{n}.png,s{n},p{n},head" for n in range(1, 6)]
    (folder / "t.csv").write_text("\n".join(["path,scan_id,patient_id,anatomy", *whole, *rows]) + "\n")
    return folder / "t.csv"


def test_copies_are_one_line_and_no_refusal(tmp_path, capsys):
    rows = ["0.png,s0,p0,head", *(f"copy{n}.png,s0,p0,head" for n in (1, 2, 3, 4))]
    source = table(tmp_path, *rows)
    found, said = run(capsys, tmp_path / "out", "manifest", f"--source={source}")
    assert sorted(found) == [f"{n}.png" for n in range(6)]
    (line,) = [line for line in said.splitlines() if line.startswith("left out")]
    listed = "; ".join(f"row {n + 6}, 'copy{n}.png' (its frame, first in row 6)" for n in (1, 2, 3))
    assert line == f"left out 4 row(s): it repeats an earlier frame pixel for pixel, such as {listed}"
    report = json.loads((tmp_path / "out/ingest_report.json").read_text())
    assert report["skipped"]["duplicate"]["numbers"] == [7, 8, 9, 10]
    assert "warning" not in said


@pytest.mark.parametrize(
    ("row", "differ"),
    [
        ("copy1.png,s0,p0,femur", "anatomy"),
        ("copy1.png,s9,p9,head", "patient"),
        ("copy1.png,s9,p9,femur", "anatomy and patient"),
    ],
)
def test_copies_that_contradict_each_other(tmp_path, capsys, row, differ):
    source = table(tmp_path, "0.png,s0,p0,head", row, "copy2.png,s0,p0,head")
    found, said = run(capsys, tmp_path / "out", "manifest", f"--source={source}")
    assert not found
    assert (
        "left out row 6, '0.png': it repeats a frame that has another label or patient, so none of these can be "
        in said
    )
    assert f"trusted: its frame, also in row 7, with another {differ} (correct the labels" in said
    assert "error: 3 of 8 row(s) cannot be used" in said
    found, said = run(capsys, tmp_path / "out", "manifest", f"--source={source}", "--skip_bad")
    assert sorted(found) == [f"{n}.png" for n in range(1, 6)], "no copy is kept"


def test_a_copy_with_a_label_goes_before_one_without(tmp_path, capsys):
    source = table(tmp_path, "0.png,s0,p0,", "copy1.png,s0,p0,femur", "copy2.png,s0,p0,")
    found, said = run(capsys, tmp_path / "out", "manifest", f"--source={source}")
    assert found["copy1.png"] == "femur"
    assert found.keys() & {"0.png", "copy2.png"} == set()
    assert "row 6, '0.png' (its frame, kept from row 7); row 8, 'copy2.png' (its frame, first in row 7)" in said


def test_patients_who_are_a_guess_are_warned_of(tmp_path, capsys):
    draw_files(tmp_path / "in", *(f"head/p{n}/{n}.png" for n in range(5)))
    shutil.copy(tmp_path / "in/head/p0/0.png", tmp_path / "in/head/p1/copy.png")
    args = ("folder", f"--source={tmp_path / 'in'}")
    found, said = run(capsys, tmp_path / "out", *args)
    assert sorted(found) == [f"{n}.png" for n in range(5)]
    assert "warning: 1 of the repeated frame(s) were of another patient than the kept one. As patients are" in said
    assert not run(capsys, tmp_path / "named", *args, "--scan_from=folder")[0], "here the user names the patients"


def test_frames_that_clips_share(tmp_path, capsys):
    clips = [moving_disc(6, seed=n) for n in range(5)]
    clips[1][2:4] = clips[0][2:4]
    (tmp_path / "in").mkdir()
    for number, clip in enumerate(clips):
        write_video(tmp_path / f"in/{number}.avi", clip, "ffv1")
    args = ("video", f"--source={tmp_path / 'in'}", "--every=1", "--near_duplicate=0")
    _, said = run(capsys, tmp_path / "out", *args)
    assert (
        "left out file 2, '1.avi': it repeats an earlier frame pixel for pixel: 2 of its 6 frames, first in file 1"
        in said
    )
    assert len(ScanIndex.from_dataset(tmp_path / "out")) == 28


def test_skip_bad_may_be_added_or_left_away_later(tmp_path, capsys):
    draw_files(tmp_path / "in", *(f"head/p{n}/{n}.png" for n in range(5)))
    args = ("folder", f"--source={tmp_path / 'in'}")
    assert run(capsys, tmp_path / "out", *args)[0]
    assert "is already prepared: nothing to do." in run(capsys, tmp_path / "out", *args, "--skip_bad")[1]
    (tmp_path / "in/head/p0/empty.png").write_bytes(b"")
    assert "was prepared from other files" in run(capsys, tmp_path / "out", *args, "--skip_bad")[1]
    assert run(capsys, tmp_path / "out2", *args, "--skip_bad")[0]
    assert "is already prepared: nothing to do." in run(capsys, tmp_path / "out2", *args)[1]


def test_equal_faults_of_a_table_are_one_line(tmp_path, capsys):
    draw_files(tmp_path, *(f"{n}.png" for n in range(5)))
    rows = ["0.png,s0,p0", *(f"{n}.png,s{n}," for n in range(1, 5))]
    (tmp_path / "t.csv").write_text("\n".join(["path,scan_id,patient_id", *rows]) + "\n")
    args = ("manifest", f"--source={tmp_path / 't.csv'}", "--test_share=0", "--val_share=0")
    _, said = run(capsys, tmp_path / "out", *args)
    assert (
        "left out 4 row(s): a cell of its row is empty or invalid: patient_id is empty, such as row 2, '1.png'; row 3, "
        "'2.png'; row 4, '3.png'\n"
    ) in said
