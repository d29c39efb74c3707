"""The ingest command: what it prints, what it leaves, how it ends."""

import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest import command as ingest
from awcl_jax.ingest.own.command import KINDS
from awcl_jax.ingest.prepare import BUILDERS
from awcl_jax.ingest.public.fetal_planes_db import FetalPlanesDb
from tests.helpers.frames import PLANES_ROWS, FrameSet, frame_record


def run(*args: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr without the progress bars."""
    status = 0
    try:
        ingest.main([str(arg) for arg in args])
    except SystemExit as left:
        status = left.code
    out, err = capsys.readouterr()
    return status, out, "\n".join(line for line in re.split(r"[\r\n]+", err) if line.startswith("error"))


def test_summary(planes, tmp_path, capsys):
    planes.write(*PLANES_ROWS, "m1;9;Other;;;;0")
    (planes.folder / "Images" / "m1.png").unlink()
    out = tmp_path / "out"
    args = ["fetal_planes_db", f"--source={planes.folder}", f"--out={out}", "--skip_missing"]
    status, printed, _ = run(*args, capsys=capsys)
    # Counted by hand from PLANES_ROWS.
    table = f"""
                   train  test  total
frames                 4     3      7
scans                  2     2      4
patients               2     2      4
abdomen                1     0      1
head                   2     0      2
  no fine anatomy      1     0      1
  trans-thalamic       1     0      1
femur                  0     2      2
cervix                 0     1      1
no anatomy             1     0      1

Skipped 1 frame(s) because a file is missing, the first m1.
Train on it with --config.data.path={out}/fetal_planes_db/1.0.0
"""
    assert status == 0
    assert printed == f"Preparing {out}/fetal_planes_db/1.0.0\n{table}"
    assert [path.name for path in out.iterdir()] == ["fetal_planes_db"], "no empty folders are left"

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.array_record*")}
    status, printed, _ = run(*args, capsys=capsys)
    assert (status, printed) == (0, f"{out}/fetal_planes_db/1.0.0 is already prepared: nothing to do.\n{table}")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.array_record*")} == before


def test_other_settings_are_refused(planes, tmp_path, capsys):
    planes.write(*PLANES_ROWS)
    args = ["fetal_planes_db", f"--source={planes.folder}", f"--out={tmp_path / 'out'}"]
    assert run(*args, capsys=capsys)[0] == 0
    status, _, error = run(*args, "--skip_broken", capsys=capsys)
    assert status == 1
    assert "other settings: skip_broken was False and is now True. Choose another --out" in error
    assert "skip_broken was False" in run(args[0], args[2], "--skip_broken", capsys=capsys)[2], "without a source too"
    planes.write(*PLANES_ROWS, "e1;5;Fetal thorax;;;;1")
    assert re.search(
        r"csv_sha256 was \w{16} and is now \w{16}; images was 7 and is now 8", run(*args, capsys=capsys)[2]
    )


def test_replaced_images_are_noticed_except_by_datasets_of_before(planes, tmp_path, capsys):
    planes.write(*PLANES_ROWS)
    args = ["fetal_planes_db", f"--source={planes.folder}", f"--out={tmp_path / 'out'}"]
    assert run(*args, capsys=capsys)[0] == 0
    image = next((planes.folder / "Images").glob("*.png"))
    image.write_bytes(image.read_bytes() + b"x")
    assert re.search(r"settings: images_sha256 was \w{16} and is now \w{16}\.", run(*args, capsys=capsys)[2])
    metadata = tmp_path / "out/fetal_planes_db/1.0.0/metadata.json"
    stored = json.loads(metadata.read_text())
    del stored["settings"]["images_sha256"]
    metadata.write_text(json.dumps(stored))
    status, printed, _ = run(*args, capsys=capsys)
    assert (status, "is already prepared: nothing to do." in printed) == (0, True)


@pytest.mark.parametrize("inside", ["", "/prepared"])
def test_out_is_not_in_a_folder_of_the_source(planes, tmp_path, capsys, inside):
    planes.write(*PLANES_ROWS)
    before = sorted(planes.folder.rglob("*"))
    out = f"--out={planes.folder}{inside}"
    status, _, error = run("fetal_planes_db", f"--source={planes.folder}", out, capsys=capsys)
    assert status == 1
    assert (
        error == f"error: {out} must not be in --source={planes.folder}, whose files it would be among next time. "
        "Choose another folder."
    )
    masks = [f"--masks={planes.folder}", f"--source={planes.folder / 'Images'}"]
    assert "must not be in --masks=" in run("fetal_head_biometry", *masks, out, capsys=capsys)[2]
    assert sorted(planes.folder.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["--source={}/nowhere"], ["--source={}", "--csv=x.csv"], ["--source={}"]])
def test_bad_input_is_one_line_and_leaves_nothing(planes, tmp_path, capsys, arguments):
    planes.write(*PLANES_ROWS)
    (planes.folder / "Images" / "d2.png").write_bytes(b"broken")
    filled = [argument.format(planes.folder) for argument in arguments]
    status, _, error = run("fetal_planes_db", *filled, f"--out={tmp_path / 'deep' / 'out'}", capsys=capsys)
    assert status == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 0
    assert not (tmp_path / "deep").exists()


def test_the_command_itself(planes, tmp_path):
    planes.write("x;1;Fetal abdomne;;;;1")
    command = [sys.executable, "-m", "awcl_jax.ingest", "fetal_planes_db"]
    done = subprocess.run(
        [*command, f"--source={planes.folder}", f"--out={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith(
        "Known values: Fetal abdomen, Fetal femur, Fetal thorax, Maternal cervix, Fetal brain, Other.\n"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("fault", [RuntimeError("x: write() failed: No space left on device"), OSError(28, "No space")])
def test_a_full_disk_is_one_line(planes, tmp_path, capsys, monkeypatch, fault):
    def fail(builder: FetalPlanesDb) -> None:
        raise fault

    monkeypatch.setattr(FetalPlanesDb, "download_and_prepare", fail)
    planes.write(*PLANES_ROWS)
    status, _, error = run("fetal_planes_db", f"--source={planes.folder}", f"--out={tmp_path / 'out'}", capsys=capsys)
    assert status == 1
    assert "No space" in error


def test_what_a_killed_run_left_is_removed(planes, tmp_path, capsys):
    planes.write(*PLANES_ROWS)
    out = tmp_path / "out"
    left = out / "fetal_planes_db" / "incomplete.ABCDEF_1.0.0"
    left.mkdir(parents=True)
    (left / "dataset_info.json").write_text("{}")
    status, printed, _ = run("fetal_planes_db", f"--source={planes.folder}", f"--out={out}", capsys=capsys)
    assert (status, left.exists()) == (0, False)
    assert f"Removing {left}" in printed


def test_an_unfinished_dataset_is_not_used(planes, tmp_path, capsys):
    planes.write(*PLANES_ROWS)
    (tmp_path / "out/fetal_planes_db/1.0.0").mkdir(parents=True)
    status, _, error = run("fetal_planes_db", f"--source={planes.folder}", f"--out={tmp_path / 'out'}", capsys=capsys)
    assert status == 1
    assert "is not a complete dataset" in error


def test_two_at_once_are_refused(planes, tmp_path, capsys):
    planes.write(*PLANES_ROWS)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        status, _, error = run("fetal_planes_db", f"--source={planes.folder}", f"--out={tmp_path}", capsys=capsys)
    finally:
        os.close(handle)
    assert status == 1
    assert "Another process is preparing a dataset" in error


class SmallPhantom(FrameSet):
    """Stands in for the phantom, which takes longer: two frames, two presets."""

    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="default"), tfds.core.BuilderConfig(name="tiny"))

    def __init__(self, **kwargs) -> None:
        splits = {"train": [frame_record("x", "p")], "test": [frame_record("y", "q")]}
        super().__init__(splits=splits, **kwargs)


@pytest.fixture
def small_phantom(monkeypatch) -> None:
    monkeypatch.setattr("awcl_jax.ingest.phantom.Phantom", SmallPhantom)


def test_phantom_presets_lie_side_by_side(small_phantom, tmp_path, capsys):
    for preset in ("default", "tiny"):
        status, printed, _ = run("phantom", f"--out={tmp_path}", f"--preset={preset}", capsys=capsys)
        assert status == 0
        assert printed.endswith(f"--config.data.path={tmp_path}/small_phantom/{preset}/1.0.0\n")


def test_unknown_preset(small_phantom, tmp_path, capsys):
    status, _, error = run("phantom", f"--out={tmp_path}", "--preset=huge", capsys=capsys)
    assert (status, error) == (1, "error: --preset must be one of default, tiny; got 'huge'.")


def test_unknown_arguments_are_refused(tmp_path, capsys):
    for args in (["fetal_planes_db"], ["phantom", f"--out={tmp_path}", "--source=x"], ["hc19", "--out=x"], []):
        assert run(*args, capsys=capsys)[0] == 2


@pytest.mark.parametrize("command", [[], *([name] for name in (*BUILDERS, *KINDS))])
def test_help_has_an_example(command, capsys):
    status, printed, _ = run(*command, "--help", capsys=capsys)
    assert status == 0
    assert re.search(r"examples?:\s+python -m awcl_jax.ingest ", printed)


def test_real_data(real_dataset):
    index = ScanIndex.from_dataset(real_dataset)
    # Of the publisher's table, counted with cut, sort and uniq.
    assert len(index) == 1896
    assert len(index.patient_names) == 741
    counts = {name: int((index.coarse == number).sum()) for number, name in enumerate(index.coarse_names)}
    assert counts == {"abdomen": 259, "head": 1004, "femur": 217, "thorax": 368, "cervix": 15}
    assert [len(index.split(name)) for name in ("train", "test")] == [1311, 585]
