"""The ingest of one's own scans: what is prepared, what is refused, and that it goes on after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from pyarrow import parquet

from awcl_jax.data import selection
from awcl_jax.data.fan import read_fans
from awcl_jax.data.private_table import read_private_table
from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.embed import command as embed
from awcl_jax.ingest import command as ingest
from awcl_jax.ingest.own import command as ingest_own
from awcl_jax.ingest.own.folder import list_images
from awcl_jax.ingest.own.privacy import Pseudonyms
from awcl_jax.pretrain import runner as pretrain
from configs import fine
from tests.helpers.frames import speckle
from tests.helpers.own_files import draw_files, moving_disc, write_dicom, write_video

ROOT = Path(__file__).parents[2]
KEY = "a key that is long enough"


@pytest.fixture(autouse=True)
def no_key(monkeypatch) -> None:
    monkeypatch.delenv("AWCL_ID_KEY", raising=False)


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, list[str]]]:
    """Exit status, stdout, and the lines of stderr that are no progress bars."""

    def call(*args: object) -> tuple[int, str, list[str]]:
        status = 0
        try:
            ingest.main([str(arg) for arg in (*args, "--workers=1")])
        except SystemExit as left:
            status = left.code
        out, err = capsys.readouterr()
        return status, out, [line for line in re.split(r"[\r\n]+", err) if line.startswith(("left out", "error"))]

    return call


def draw(path: Path, name: str = "") -> np.ndarray:
    image = speckle(name or str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)
    return image


def records(out: Path) -> dict[str, list[dict]]:
    """Every split's records, decoded, as someone without this package reads them."""
    builder = tfds.builder_from_directory(next(out.glob("*/1.0.0")))
    return {split: list(builder.as_data_source(split)) for split in builder.info.splits}


def raw(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*/1.0.0/*")) if path.name != "scan_index.npz"}


def scans(folder: Path, patients: int = 6, frames: int = 2) -> Path:
    """A table of scans, of which every patient has two, in two anatomies."""
    lines = ["path,scan_id,patient_id,anatomy,pixel_mm"]
    for patient in range(patients):
        for scan, anatomy in enumerate(("femur", "head")):
            for frame in range(frames):
                name = f"p{patient}/s{scan}/{frame}.png"
                draw(folder / name)
                lines.append(f"{name},p{patient}s{scan},p{patient},{anatomy},0.25")
    (folder / "scans.csv").write_text("\n".join(lines) + "\n")
    return folder / "scans.csv"


def test_a_table_becomes_a_dataset(tmp_path, run, caplog):
    source, out = scans(tmp_path / "in"), tmp_path / "out"
    args = ("manifest", f"--source={source}", f"--out={out}", "--name=ours", "--test_share=0.3", "--val_share=0.2")
    args += ("--keep_ids",)
    status, printed, errors = run(*args)
    assert (status, errors) == (0, [])
    assert not caplog.records, "TFDS warns of a folder that is not there yet"
    # 6 patients with 4 frames each: round(1.8) test, round(1.2) validate.
    table = """
          train  val  test  total
frames       12    4     8     24
scans         6    2     4     12
patients      3    1     2      6
femur         6    2     4     12
head          6    2     4     12
"""
    assert table in printed
    assert printed.endswith(f"--config.data.path={out}/ours/1.0.0\n")
    assert sorted(path.name for path in out.iterdir()) == ["ingest_report.json", "montage.png", "ours"]
    assert cv2.imread(str(out / "montage.png")).std() > 10
    for of_split in records(out).values():
        for record in of_split:
            patient, scan = record["patient_id"].decode(), record["scan_id"].decode()
            drawn = [speckle(str(source.parent / patient / scan[2:] / f"{frame}.png")) for frame in range(2)]
            assert any((record["image"][..., 0] == image).all() for image in drawn)
            assert (record["anatomy_fine"], record["pixel_mm"]) == (int(scan[-1]), 0.25)
    before = raw(out)
    status, printed, _ = run(*args)
    assert status == 0
    assert "is already prepared: nothing to do." in printed
    assert table in printed
    assert raw(out) == before


def test_other_files_or_settings_are_refused(tmp_path, run):
    source, out = scans(tmp_path / "in"), tmp_path / "out"
    args = ("manifest", f"--source={source}", f"--out={out}")
    assert run(*args)[0] == 0
    status, _, (error,) = run(*args, "--seed=1")
    assert status == 1
    assert "seed was 0 and is now 1" in error
    draw(source.parent / "p0/s0/0.png", "another")
    assert "was prepared from other files, labels or ids. Choose another --out" in run(*args)[2][0]


def test_masks_frames_and_splits_of_a_table(tmp_path, run):
    lines = ["path,scan_id,frame,mask,split,anatomy"]
    for split in ("train", "val", "test"):
        for frame in (3, 1, 2):
            name = f"{split}{frame}.png"
            draw(tmp_path / name)
            cv2.imwrite(str(tmp_path / f"mask{name}"), np.full((32, 40), frame % 2, np.uint8))
            lines.append(f"{name},{split},{frame},mask{name},{split},")
    (tmp_path / "scans.csv").write_text("\n".join(lines))
    args = ("manifest", f"--source={tmp_path / 'scans.csv'}", f"--out={tmp_path / 'out'}")
    assert "got masks without names" in run(*args)[2][0]
    assert run(*args, "--mask_names=background,head", "--keep_ids")[0] == 0
    for split, of_split in records(tmp_path / "out").items():
        assert [record["scan_id"] for record in of_split] == [split.encode()] * 3
        for record, frame in zip(of_split, (1, 2, 3), strict=True):
            np.testing.assert_array_equal(record["image"][..., 0], speckle(str(tmp_path / f"{split}{frame}.png")))
            assert (record["mask"] == frame % 2).all()
            assert record["anatomy_fine"] == record["anatomy_coarse"] == -1


def test_gaps_sideways_pictures_and_other_formats(tmp_path, run):
    # Half of the rows spell that they have no anatomy; a picture lies under a mask that is drawn on it as it is shown.
    lines = ["sep=;", "path;scan_id;anatomy;mask"]
    for number in range(8):
        lies = Image.fromarray(speckle(str(number)))
        exif = Image.Exif()
        exif[274] = 6
        lies.save(tmp_path / f"{number}.PNG", exif=exif)
        cv2.imwrite(str(tmp_path / f"m{number}.png"), np.rot90(speckle(str(number)) > 100, -1) * np.uint8(255))
        lines.append(rf".\{number}.png;s{number};{'nan' if number % 2 else 'head'};m{number}.png")
    (tmp_path / "scans.csv").write_text("\n".join(lines))
    args = ("manifest", f"--source={tmp_path / 'scans.csv'}", f"--out={tmp_path / 'out'}", "--mask_names=other,head")
    assert run(*args)[0] == 0
    builder = tfds.builder_from_directory(tmp_path / "out/own_scans/1.0.0")
    assert builder.info.features["anatomy_fine"].names == ["head"]
    drawn = {np.rot90(speckle(str(number)), -1).tobytes(): number for number in range(8)}
    found = [record for of_split in records(tmp_path / "out").values() for record in of_split]
    for record in found:
        number = drawn.pop(record["image"][..., 0].tobytes())
        assert record["anatomy_fine"] == -(number % 2)
        np.testing.assert_array_equal(record["mask"][..., 0], record["image"][..., 0] > 100)
    assert drawn == {}


def test_pictures_of_other_formats_are_counted_in_a_line(tmp_path, run):
    for patient in range(5):
        draw(tmp_path / f"in/head/p{patient}/a.png")
    for name in ("a.nii.gz", "b.NII", "c.gif", "d.gif", "notes.txt"):
        (tmp_path / "in/head/p0" / name).write_bytes(b"x")
    status, printed, _ = run("folder", f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}")
    assert status == 0
    assert "Ignored 4 file(s) in other formats (2 .gif, 1 .nii, 1 .nii.gz): `folder` reads .png, .jpg" in printed
    assert "`dicom` .dcm, .dicom, .ima, .img. Convert the others." in printed


def test_what_another_command_reads_need_not_be_converted(tmp_path, run):
    for patient in range(5):
        draw(tmp_path / f"in/head/p{patient}/a.png")
    for name in ("a.dcm", "b.mp4"):
        (tmp_path / "in/head/p0" / name).write_bytes(b"x")
    _, printed, _ = run("folder", f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}")
    assert "Ignored 2 file(s) in other formats (1 .dcm, 1 .mp4): `folder` reads .png" in printed
    assert "`dicom` .dcm, .dicom, .ima, .img.\n" in printed
    assert "Convert" not in printed


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["p1/1_a", "p1/1_b", "p2/2_a", "p3/3_a"], True),
        (["head/1_a", "head/2_a", "femur/1_b", "spine/3_a"], False),  # anatomies of several patients
        (["head/1_a", "femur/1_b", "spine/1_c"], False),  # three of one patient
        (["head/1_a", "femur/2_a"], False),  # too few to tell
    ],
)
def test_folders_of_patients_that_are_taken_for_anatomies_are_warned_of(tmp_path, names, warned):
    listing = list_images(draw_files(tmp_path, *(f"{name}.png" for name in names)), (".png",))
    said = (
        "warning: each of the 3 folders taken for anatomies has one patient, and no patient is in two. If folders are "
        "patients, put them into one folder in --source, or name anatomies with --labels=TABLE."
    )
    assert (said in listing.remarks) == warned
    assert len(listing.remarks) == warned


def bad_tree(folder: Path) -> Path:
    for patient in range(5):
        draw(folder / f"head/p{patient}/a.png")
    good = (folder / "head/p0/a.png").read_bytes()
    odd = folder / 'head/p0/a "b", c\nd größe.png'
    draw(odd, "odd")
    for name, data in {"cut.png": good[:-30], "text.png": b"not an image", "empty.png": b"", "copy.png": good}.items():
        (folder / "head/p1" / name).write_bytes(data)
    (folder / "head/p1/odd\n\udcff.png").write_bytes(b"")
    cv2.imwrite(str(folder / "head/p2/deep.png"), speckle("x").astype(np.uint16) * 200)
    cv2.imwrite(str(folder / "head/p2/black.png"), np.zeros((9, 9), np.uint8))
    cv2.imwrite(str(folder / "head/p2/colour.png"), np.stack([speckle("c"), speckle("d"), speckle("e")], axis=-1))
    (folder / "head/p3/link.png").symlink_to("/etc/hostname")
    (folder / "head/notes.txt").write_text("x")
    return folder


def test_bad_files_are_a_line_each_and_the_rest_goes_on(tmp_path, run):
    source, out = bad_tree(tmp_path / "in"), tmp_path / "out"
    args = ("folder", f"--source={source}", f"--out={out}")
    status, printed, said = run(*args)
    assert status == 1
    assert printed == ""
    assert [re.sub(r"^left out (file \d+, )?", "", line).split(" (")[0] for line in said[:-1]] == [
        "'head/p3/link.png': it is outside the folder that files may come from, or a link leads outside it",
        "'head/p1/copy.png': it repeats another frame pixel for pixel: its frame, first in file 2",
        "'head/p1/cut.png': it is truncated or damaged",
        "'head/p1/empty.png': the file is empty",
        r"'head/p1/odd\n\udcff.png': the file is empty",
        "'head/p1/text.png': it cannot be decoded as an image",
        "'head/p2/black.png': every pixel has the same value",
        "'head/p2/deep.png': it has more than 8 bits per pixel and does not say how to display them",
    ]
    assert said[-1].startswith("error: 7 of 15 file(s) cannot be used; the reasons are listed above")
    assert not list(out.glob("own_scans"))
    assert run(*args, "--skip_bad")[0] == 0
    report = json.loads((out / "ingest_report.json").read_text())
    assert {kind: of["count"] for kind, of in report["skipped"].items()} == {
        "bit_depth": 1,
        "blank": 1,
        "cut_short": 1,
        "duplicate": 1,
        "no_bytes": 2,
        "no_image": 1,
        "outside": 1,
    }
    assert sum(report["frames"].values()) == 7
    assert report["frames_by_treatment"]["coloured"] == 1
    assert report["ignored_files"] == 1
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")], "no chunks are left"


@pytest.mark.parametrize("looked_at", [True, False])
def test_of_many_faults_of_a_kind_a_terminal_shows_the_first(tmp_path, run, monkeypatch, looked_at):
    draw(tmp_path / "in/head/p/whole.png")
    for number in range(30):
        (tmp_path / f"in/head/p/{number:02}.png").write_bytes(b"")
    (tmp_path / "in/head/p/z.png").write_bytes(b"no image")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: looked_at)
    args = (f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--test_share=0", "--val_share=0")
    status, _, said = run("folder", *args)
    assert status == 1
    empty, others = said[:20], said[20:]
    assert [re.search(r"(\d+)\.png", line).group(1) for line in empty] == [f"{number:02}" for number in range(20)]
    assert len(others) == (3 if looked_at else 12)
    assert others[0].startswith(
        "left out 10 more: the file is empty" if looked_at else "left out file 21, 'head/p/20.png'"
    )
    assert others[-2].startswith("left out file 32, 'head/p/z.png'")
    assert others[-1].startswith("error: 31 of 32 file(s) cannot be used")


def test_what_cannot_be_used_at_all(tmp_path, run):
    (tmp_path / "in/head/p").mkdir(parents=True)
    (tmp_path / "in/head/p/x.png").write_bytes(b"")
    args = ("folder", f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--test_share=0", "--val_share=0")
    status, _, said = run(*args, "--skip_bad")
    assert status == 1
    assert said[-1].startswith("error: None of 1 file(s) can be used, all for one reason: the file is empty.")
    (tmp_path / "in/head/p/y.png").write_bytes(b"text")
    assert run(*args)[2][-1].startswith("error: None of 2 file(s) can be used; the reasons are listed above")


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--test_share=0.7", "--val_share=0.3"], 1, "--val_share and --test_share must be >= 0 and their sum below 1"),
        (["--test_share=0.99", "--val_share=0"], 1, "leave none for training"),
        (["--region=tag"], 1, "--region of manifest must be of whole, frame or X0,Y0,X1,Y1; got 'tag'"),
        (["--region=9,0,3,3"], 2, ""),
        (["--window=9"], 2, ""),
        (["--name=../x"], 2, ""),
        (["--max_pixels=0"], 2, ""),
        (["--mask_names=a,b"], 1, "got names without masks"),
    ],
)
def test_bad_flags(tmp_path, run, flags, status, message):
    source = scans(tmp_path / "in", patients=3, frames=1)
    found, _, said = run("manifest", f"--source={source}", f"--out={tmp_path / 'out'}", *flags)
    assert found == status
    assert message in "".join(said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["manifest", "folder"])
@pytest.mark.parametrize("absent", [True, False])
def test_a_split_that_is_lost_is_said(tmp_path, run, command, absent):
    for number in range(8):
        draw(tmp_path / f"in/{number}.png")
    for number in (6, 7):  # all of the test
        (tmp_path / f"in/{number}.png").write_bytes(b"")
        if absent:
            (tmp_path / f"in/{number}.png").unlink()
    rows = [f"{'in/' * (command == 'manifest')}{n}.png,s{n},{'test' if n > 5 else 'train'}" for n in range(8)]
    (tmp_path / "t.csv").write_text("\n".join(["path,scan_id,split", *rows]))
    source = (f"--source={tmp_path / 't.csv'}",)
    if command == "folder":
        source = (f"--source={tmp_path / 'in'}", f"--labels={tmp_path / 't.csv'}", "--scan_from=stem")
        (tmp_path / "t.csv").write_text("\n".join(["path,scan_id,split,anatomy", *(f"{row},head" for row in rows)]))
    for _ in range(2):  # it is stored
        status, printed, _ = run(command, *source, f"--out={tmp_path / 'out'}", "--skip_bad")
        assert status == 0
        assert "warning: no frame is left for test: all of its files were left out." in printed
    assert "left for train" not in printed


def test_a_patient_in_two_splits_is_left_out(tmp_path, run):
    lines = ["path,scan_id,patient_id,split"]
    for number, (patient, split) in enumerate([("a", "train"), ("b", "train"), ("b", "test"), ("c", "test")]):
        draw(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,s{number},{patient},{split}")
    (tmp_path / "scans.csv").write_text("\n".join(lines))
    args = ("manifest", f"--source={tmp_path / 'scans.csv'}", f"--out={tmp_path / 'out'}")
    status, _, said = run(*args)
    assert status == 1
    assert said[0] == "left out row 3, '2.png': its patient is in two splits: train in row 2 and test in row 3"
    assert run(*args, "--skip_bad", "--keep_ids")[0] == 0
    assert {split: [r["patient_id"] for r in of] for split, of in records(tmp_path / "out").items()} == {
        "train": [b"a"],
        "test": [b"c"],
    }


def test_nothing_that_is_stored_names_a_file(tmp_path, run, monkeypatch):
    for patient in range(4):
        draw(tmp_path / f"in/head/Mustermann{patient}/erika{patient}.png")
    args = ("folder", f"--source={tmp_path / 'in'}", "--scan_from=folder")
    assert run(*args, f"--out={tmp_path / 'bare'}")[0] == 0
    monkeypatch.setenv("AWCL_ID_KEY", KEY)
    assert run(*args, f"--out={tmp_path / 'keyed'}")[0] == 0
    for out in ("bare", "keyed"):
        files = b"".join(path.read_bytes() for path in (tmp_path / out).rglob("*") if path.is_file())
        found = [record for of in records(tmp_path / out).values() for record in of]
        ids = b" ".join(record[name] for record in found for name in ("frame_id", "scan_id", "patient_id"))
        for name in (b"mustermann", b"erika"):
            assert name not in (files + ids).lower()
    assert {record["patient_id"] for of in records(tmp_path / "bare").values() for record in of} == {
        f"patient{number:06d}".encode() for number in (1, 2, 3, 4)
    }


def test_a_dataset_that_was_left_before_its_pictures_is_finished(tmp_path, run, monkeypatch):
    source, out = scans(tmp_path / "in", frames=1), tmp_path / "out"
    args = ("manifest", f"--source={source}", f"--out={out}")

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(ingest_own, "write_contact_sheet", interrupt)
        assert run(*args)[0] == 130
    before = raw(out)
    assert not (out / "montage.png").exists()
    assert "seed was 0 and is now 1" in run(*args, "--seed=1")[2][0]
    assert run(*args)[0] == 0
    assert raw(out) == before
    assert sorted(path.name for path in out.iterdir()) == ["ingest_report.json", "montage.png", "own_scans"]


def test_ids_are_numbers_or_hashes_unless_they_are_to_be_kept(tmp_path, run, monkeypatch):
    source = scans(tmp_path / "in", patients=3, frames=1)
    args = ("manifest", f"--source={source}")
    found = {}
    for out, flags in (("numbers", []), ("kept", ["--keep_ids"])):
        assert run(*args, f"--out={tmp_path / out}", *flags)[0] == 0
        found[out] = {record["patient_id"].decode() for of in records(tmp_path / out).values() for record in of}
    assert found == {"numbers": {f"patient00000{n}" for n in (1, 2, 3)}, "kept": {"p0", "p1", "p2"}}
    monkeypatch.setenv("AWCL_ID_KEY", KEY)
    assert "--keep_ids stores ids unchanged" in run(*args, f"--out={tmp_path / 'no'}", "--keep_ids")[2][0]
    assert run(*args, f"--out={tmp_path / 'hashes'}")[0] == 0
    names = ScanIndex.from_dataset(tmp_path / "hashes").patient_names
    assert set(names) == {Pseudonyms(KEY.encode()).digest("patient", f"p{n}") for n in range(3)}


def test_ids_of_a_table_go_before_those_of_dicom(tmp_path, run, monkeypatch):
    monkeypatch.setenv("AWCL_ID_KEY", KEY)
    lines = ["path,scan_id,patient_id"]
    for number in range(4):
        write_dicom(tmp_path / f"{number}.dcm", moving_disc(1, seed=number), patient="", study=f"1.{number}")
        lines.append(f"{number}.dcm,visit{number},p{number // 2}")
    (tmp_path / "files.csv").write_text("\n".join(lines))
    flags = (f"--source={tmp_path / 'files.csv'}", f"--out={tmp_path / 'out'}", "--val_share=0")
    assert run("dicom", *flags)[0] == 0
    index, ids = ScanIndex.from_dataset(tmp_path / "out"), Pseudonyms(KEY.encode())
    assert set(index.patient_names) == {ids.digest("patient", f"p{n}") for n in range(2)}
    assert set(index.scan_names) == {ids.digest("scan", f"visit{n}") for n in range(4)}


def test_clips_of_a_table(tmp_path, run):
    lines = ["path,patient_id,label"]
    (tmp_path / "clips").mkdir()
    for number in range(6):
        write_video(tmp_path / f"clips/{number}.mp4", moving_disc(17, seed=number))
        lines.append(f"{number}.mp4,{number // 2},ignored")
    (tmp_path / "videos.csv").write_text("\n".join(lines))
    args = ("video", f"--source={tmp_path / 'videos.csv'}", f"--root={tmp_path / 'clips'}", f"--out={tmp_path / 'out'}")
    assert run(*args, "--keep_ids")[0] == 0
    index = ScanIndex.from_dataset(tmp_path / "out")
    assert (len(index), len(index.scan_names), index.patient_names) == (18, 6, ("0", "1", "2"))
    assert index.fine_names == ()


@pytest.mark.slow
def test_removed_parts_of_clips_are_shown_and_fans_stored(tmp_path, run):
    rows, columns = np.indices((240, 320))
    x, z = columns - 160, rows + 40
    fan = (np.abs(np.arctan2(x, z)) < 0.5) & (np.hypot(x, z) < 260) & (rows > 20)
    for number in range(4):
        rng = np.random.default_rng(number)
        frames = [np.where(fan, 60 + cv2.GaussianBlur(rng.normal(0, 300, fan.shape), (0, 0), 3), 0) for _ in range(24)]
        frames = [np.clip(frame, 0, 255).astype(np.uint8) for frame in frames]
        for frame in frames:
            cv2.putText(frame, "NAME, GIVEN", (4, 14), cv2.FONT_HERSHEY_PLAIN, 1, 255)
        (tmp_path / f"in/p{number}").mkdir(parents=True)
        write_video(tmp_path / f"in/p{number}/a.mp4", frames)
    args = ("video", f"--source={tmp_path / 'in'}", "--every=2")
    status, printed, _ = run(*args, f"--out={tmp_path / 'out'}", "--region=sector")
    assert status == 0
    assert f"Check in {tmp_path / 'out/removed.png'} that the removed parts (red) are text, not echoes" in printed
    picture = cv2.imread(str(tmp_path / "out/removed.png")).astype(int)
    red = (picture[..., 2] > 60) & (picture[..., :2].max(axis=-1) < 10)
    assert 0.001 < red.mean() < 0.05, "the names, and next to nothing of the fans"
    index = ScanIndex.from_dataset(tmp_path / "out")
    fans = read_fans(index.path)
    assert sorted(fans) == sorted(index.scan_names)
    for (found,) in fans.values():
        assert (found.left, found.right) == pytest.approx((-28.6, 28.6), abs=1.5)  # 0.5 radian
        # At (160, -40) of the whole picture, of which 35 columns on the left and 21 rows above are cut away.
        assert (found.apex_x, found.apex_y) == pytest.approx((125, -61), abs=8)
        assert found.outer == pytest.approx(260, rel=0.04)
    assert run(*args, f"--out={tmp_path / 'whole'}")[0] == 0
    assert not (tmp_path / "whole/removed.png").exists()
    assert read_fans(ScanIndex.from_dataset(tmp_path / "whole").path) == {}


@pytest.mark.slow
def test_frames_of_a_scan_have_the_fans_of_their_own_clips(tmp_path, run):
    rows, columns = np.indices((240, 320))
    lines = ["path,scan_id,patient_id"]
    (tmp_path / "in").mkdir()
    for patient in range(3):
        for clip, half in {"wide": 0.5, "narrow": 0.35, "still": 0.5}.items():
            x, z = columns - 160, rows + 40
            fan = (np.abs(np.arctan2(x, z)) < half) & (np.hypot(x, z) < 260) & (rows > 20)
            rng = np.random.default_rng([patient, len(clip)])
            frames = []
            for _ in range(1 if clip == "still" else 24):
                frame = np.where(fan, 90 + cv2.GaussianBlur(rng.normal(0, 300, fan.shape), (0, 0), 3), 0)
                frames.append(np.clip(frame, 0, 255).astype(np.uint8))
            write_video(tmp_path / f"in/{clip}{patient}.mp4", frames)
            lines.append(f"{clip}{patient}.mp4,s{patient},p{patient}")
    (tmp_path / "in/clips.csv").write_text("\n".join(lines))
    args = ("video", f"--source={tmp_path / 'in/clips.csv'}", "--every=6", "--region=sector,frame", "--keep_ids")
    assert run(*args, f"--out={tmp_path / 'out'}")[0] == 0
    # Splits drawn again keep the order of a scan's frames.
    again = ("resplit", f"--dataset={tmp_path / 'out'}", f"--out={tmp_path / 'again'}", "--seed=3")
    ingest.main([str(arg) for arg in again])
    right = {"wide": 0.5, "narrow": 0.35, "still": 0.0}
    for folder in ("out", "again"):
        index = ScanIndex.from_dataset(tmp_path / folder)
        clip_of = {row["frame_id"]: Path(row["path"]).stem[:-1] for row in read_private_table(index.path).to_pylist()}
        expected = [right[clip_of[frame_id]] for frame_id in index.frame_ids.tolist()]
        found = FrameReader(index, 64).fans(np.arange(len(index)))
        np.testing.assert_allclose(found[:, 5], expected, atol=0.03)
        assert set(expected) == set(right.values())


def test_frames_that_stand_still_are_dropped(tmp_path, run):
    still, moving = moving_disc(1)[0], moving_disc(1, seed=1)[0]
    clips = [[still] * 9 + [moving] * 3, moving_disc(4, seed=6), moving_disc(4, seed=7)]
    for number, clip in enumerate(clips):
        (tmp_path / f"in/p{number}").mkdir(parents=True)
        write_video(tmp_path / f"in/p{number}/a.avi", clip, "mjpeg")
    args = ("video", f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--every=1")
    status, printed, _ = run(*args)
    assert status == 0
    assert "Dropped 10 near-duplicate frame(s)" in printed
    assert len(ScanIndex.from_dataset(tmp_path / "out")) == 2 + 4 + 4


def test_labels_of_dicom_come_from_a_table(tmp_path, run, monkeypatch):
    monkeypatch.setenv("AWCL_ID_KEY", KEY)
    lines = ["path,anatomy"]
    for number in range(4):
        write_dicom(tmp_path / f"{number}.dcm", moving_disc(3, seed=number), patient=f"p{number}", study=f"1.{number}")
        lines.append(f"{number}.dcm,{'FLP' if number % 2 else 'four chamber'}")
    (tmp_path / "files.csv").write_text("\n".join(lines))
    (tmp_path / "names.toml").write_text('[planes]\nFLP = "femur"\n4CH = "heart"\n[aliases]\n"four chamber" = "4CH"\n')
    args = ("dicom", f"--source={tmp_path / 'files.csv'}", f"--out={tmp_path / 'out'}", "--every=2")
    assert run(*args, f"--taxonomy={tmp_path / 'names.toml'}")[0] == 0
    index = ScanIndex.from_dataset(tmp_path / "out")
    assert (index.fine_names, index.coarse_names) == (("FLP", "4CH"), ("femur", "heart"))
    assert np.bincount(index.fine).tolist() == [4, 4]
    assert len(index.patient_names) == len(index.scan_names) == 4


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(tmp_path):
    source = bad_tree(tmp_path / "in")
    for number in range(300):
        draw(source / f"femur/q{number // 10}/{number}.png")
    found = []
    for workers in (1, 3):
        out = tmp_path / f"out{workers}"
        ingest.main(["folder", f"--source={source}", f"--out={out}", "--skip_bad", f"--workers={workers}"])
        found.append((raw(out), (out / "ingest_report.json").read_text()))
    assert found[0] == found[1]


@pytest.mark.slow
def test_after_a_kill_the_same_command_goes_on(tmp_path, monkeypatch):
    source = tmp_path / "in"
    for number in range(400):
        draw(source / f"head/p{number // 20}/{number}.png")
    args = ["folder", f"--source={source}", "--scan_from=folder"]
    ingest.main([*args, f"--out={tmp_path / 'whole'}", "--workers=1"])
    out = tmp_path / "killed"
    killed = subprocess.Popen(
        [sys.executable, "-m", "awcl_jax.ingest", *args, f"--out={out}", "--workers=2"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(list(out.glob(".own_scans.chunks/*.json"))) < 2:
        assert killed.poll() is None
        time.sleep(0.002)
    workers = psutil.Process(killed.pid).children(recursive=True)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert psutil.wait_procs(workers, timeout=20)[1] == [], "no process is left behind"
    kept = {path.stem: path.stat().st_mtime_ns for path in out.glob(".own_scans.chunks/*.json")}
    monkeypatch.setattr(ingest_own.shutil, "rmtree", lambda folder: None)
    ingest.main([*args, f"--out={out}", "--workers=1"])
    assert 2 <= len(kept) < 8
    after = {path.stem: path.stat().st_mtime_ns for path in out.glob(".own_scans.chunks/*.json")}
    assert len(after) == 8
    assert kept.items() <= after.items(), "what was decoded is not decoded again"
    assert raw(out) == raw(tmp_path / "whole")


PEAK = """
import re, sys
from awcl_jax.ingest import command as ingest
from awcl_jax.ingest.own import command as ingest_own
prepare = ingest_own.prepare
def and_say_the_peak(*args):
    prepare(*args)
    # What getrusage calls the peak is the parent's, where that was higher.
    print("peak", re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
ingest_own.prepare = and_say_the_peak
ingest.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_frames(tmp_path):
    """Sixteen times the frames of a clip, and the clips: 105 MB of pixels in place of 7, until the dataset is there."""
    peaks = []
    for frames, files in ((25, 2), (400, 2), (25, 32)):
        folder = tmp_path / f"{frames}_{files}"
        for number in range(files):
            clip = moving_disc(frames, size=(256, 512), seed=number)
            write_dicom(folder / "in" / f"{number}.dcm", clip, patient=str(number), study=f"1.{number}")
        (folder / "key").write_text(KEY)
        flags = [f"--source={folder / 'in'}", f"--out={folder / 'out'}", f"--key_file={folder / 'key'}", "--every=1"]
        flags += ["--near_duplicate=0", "--workers=1", "--test_share=0", "--val_share=0"]
        command = [sys.executable, "-c", PEAK, "dicom", *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert f" {frames * files:,}\n" in done.stdout
        peaks.append(int(done.stdout.split("peak ")[1].split()[0]) // 1024)
    # The allocator's own wavering is some 25 MB; to hold the frames would take 98.
    assert max(peaks) - peaks[0] < 50, peaks


def test_a_run_takes_the_dataset(tmp_path, run):
    assert run("manifest", f"--source={scans(tmp_path / 'in', patients=10)}", f"--out={tmp_path / 'out'}")[0] == 0
    parts = selection.select(tmp_path / "out", size=24, cache_mb=1, val_share=0.2, seed=0)
    counts = {name: len(getattr(parts, name).index) for name in ("train", "val", "test")}
    assert counts == {"train": 28, "val": 4, "test": 8}
    assert parts.train.reader.read(np.arange(28)).std() > 10
    patients = [{*getattr(parts, name).index.patients.tolist()} for name in counts]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 10


@pytest.mark.slow
def test_a_run_trains_on_the_dataset_and_embeds_it(tmp_path, run):
    for patient in range(12):
        for number, anatomy in enumerate(("femur", "head") * 2):
            draw(tmp_path / f"in/{anatomy}/p{patient}/{number}.png")
    assert run("folder", f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}")[0] == 0
    config = fine.get_config("tiny")
    config.data.path = str(tmp_path / "out")
    config.report.pictures = False
    config.train.steps = config.train.eval_every = config.train.checkpoint_every = 4
    config.optim.warmup_steps = 1
    assert pretrain.run(config, tmp_path / "run")
    embed.main([str(tmp_path / "run"), str(tmp_path / "out"), f"--out={tmp_path / 'features.parquet'}"])
    table = parquet.read_table(tmp_path / "features.parquet")
    features = np.stack(table["features"].to_numpy())
    assert (len(features), np.isfinite(features).all()) == (48, True)
    assert len(np.unique(features.round(6), axis=0)) == 48, "no two frames look alike"
    assert set(table["anatomy"].to_pylist()) == {"femur", "head"}
    assert set(table["patient_id"].to_pylist()) == {f"patient{number:06d}" for number in range(1, 13)}


def test_real_studies(real_data, tmp_path, run):
    """HC18 names a study by the number before the underscore; two of its frames are one and the same picture."""
    folder = real_data / "HC18"
    rows = (folder / "training_set_pixel_size_and_HC.csv").read_text().splitlines()[1:200]
    lines = [f"{name},{name.split('_')[0]},head,{size}" for name, size, _ in (row.split(",") for row in rows)]
    (tmp_path / "scans.csv").write_text("\n".join(["path,scan_id,anatomy,pixel_mm", *lines]))
    flags = (f"--source={tmp_path / 'scans.csv'}", f"--root={folder / 'training_set'}", f"--out={tmp_path / 'out'}")
    assert run("manifest", *flags)[0] == 0
    index = ScanIndex.from_dataset(tmp_path / "out")
    assert len(index) == len(rows)
    assert len(index.scan_names) == len({line.split(",")[1] for line in lines})
    sizes = {round(float(record["pixel_mm"]), 5) for of in records(tmp_path / "out").values() for record in of}
    assert sizes == {round(float(np.float32(row.split(",")[1])), 5) for row in rows}


@pytest.mark.slow
def test_real_clips(real_data, tmp_path, run):
    folder = real_data / "POCUS_LUNG"
    table = (folder / "videos.csv").read_text()
    (tmp_path / "videos.csv").write_text(table.replace("file,patient,", "path,patient_id,"))
    flags = (f"--source={tmp_path / 'videos.csv'}", f"--root={folder / 'videos'}", f"--out={tmp_path / 'out'}")
    assert run("video", *flags, "--every=16", "--keep_ids")[0] == 0
    index = ScanIndex.from_dataset(tmp_path / "out")
    clips = [row.split(",") for row in table.splitlines()[1:]]
    assert index.patient_names == tuple(sorted({patient for _, patient, *_ in clips}))
    assert len(index.scan_names) == len(clips) == 24
    # Some clips have a frame more than the table says.
    assert len(index) == pytest.approx(sum(-(-int(count) // 16) for *_, count, _ in clips), abs=2)
