"""UltraBench: labels, masks and splits as its command writes them, patients by a table, and what is refused."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from awcl_jax.data.about import About
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest import command as ingest
from awcl_jax.ingest.public.ultrabench import SETS, Ultrabench
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import decoded_records, speckle

CLIPS = {"train": ("Reg_a.mp4", "Pne_b.mp4"), "validation": ("Cov_c.gif",), "test": ("Reg_d.mp4",)}
LABELS = {"Reg": (0, "regular"), "Pne": (1, "pneumonia"), "Cov": (2, "covid")}


def write(
    folder: Path, entries: dict[str, list[dict[str, Any]]], *, masks: dict[str, np.ndarray] | None = None
) -> Path:
    """Write a set as UltraBench does, with a picture for each entry, and these masks."""
    (folder / "images").mkdir(parents=True)
    for split, rows in entries.items():
        (folder / f"{split}.json").write_text(json.dumps(rows, indent=4))
        for row in rows:
            grey = speckle(Path(row["image"]).stem)
            cv2.imwrite(str(folder / row["image"]), np.stack([grey] * 3, axis=-1))  # colour, as of POCUS
    for name, mask in (masks or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), mask)
    return folder


@pytest.fixture
def pocus(tmp_path) -> Path:
    entries = {
        split: [
            {
                "source": clip,
                "image": f"images/{Path(clip).stem}_{frame}.png",
                "scan_mask": f"masks/scan/{Path(clip).stem}_{frame}.png",
                "pathology": LABELS[clip[:3]][1],
                "label": LABELS[clip[:3]][0],
            }
            for clip in clips
            for frame in range(2)
        ]
        for split, clips in CLIPS.items()
    }
    return write(tmp_path / "pocus_v1.0.1", entries)


@pytest.fixture
def mmotu(tmp_path) -> Path:
    """Two-valued masks as the publisher writes them: 255 in one file, 1 in another."""
    rows = {
        split: [
            {
                "image": f"images/{name}.png",
                "tumor_mask_binary": f"masks/tumor/{name}_binary.png",
                "tumor_mask_multiclass": f"masks/tumor/{name}_multiclass.png",
                "scan_mask": f"masks/scan/{name}.png",
                "label": label,
            }
        ]
        for split, name, label in (("train", "1", 0), ("validation", "2", 7), ("test", "3", 2))
    }
    masks = {
        f"masks/tumor/{name}_binary.png": (speckle(name) > 128).astype(np.uint8) * value
        for name, value in (("1", 255), ("2", 1), ("3", 255))
    }
    return write(tmp_path / "mmotu_v1.0.1", rows, masks=masks)


def names(rows: list[dict]) -> list[str]:
    return [row["frame_id"].decode() for row in rows]


def error_of(capsys, *args: str) -> str:
    with pytest.raises(SystemExit):
        ingest.main(["ultrabench", *args])
    lines = capsys.readouterr().err.splitlines()
    return lines[-1]


def test_frames_keep_their_split_label_and_clip(pocus, tmp_path):
    builder = Ultrabench(source=pocus, data_dir=tmp_path / "out")
    records = decoded_records(builder)
    assert {split: names(rows) for split, rows in records.items()} == {
        "train": ["Reg_a_0", "Reg_a_1", "Pne_b_0", "Pne_b_1"],
        "val": ["Cov_c_0", "Cov_c_1"],
        "test": ["Reg_d_0", "Reg_d_1"],
    }
    for rows in records.values():
        for row in rows:
            name = row["frame_id"].decode()
            np.testing.assert_array_equal(row["image"][..., 0], speckle(name))
            assert row["anatomy_fine"] == LABELS[name[:3]][0]
            assert row["patient_id"] == row["scan_id"]
            assert row["scan_id"].decode().startswith(name[:-2])
    about = About.read(Path(builder.data_dir))
    assert (about.name, about.preset, about.kind, about.confirmed) == ("ultrabench", "pocus", "public", False)
    assert "clips" in about.patients


def test_masks_of_any_two_values(mmotu, tmp_path):
    records = decoded_records(Ultrabench(source=mmotu, data_dir=tmp_path / "out"))
    rows = [row for split in ("train", "val", "test") for row in records[split]]
    assert [row["anatomy_fine"] for row in rows] == [0, 7, 2]
    for row in rows:
        np.testing.assert_array_equal(row["mask"][..., 0], speckle(row["frame_id"].decode()) > 128)


def test_numbered_patients(tmp_path):
    rows = {
        split: [
            {"patient": patient, "image": f"images/{patient}_{n}.png", "class": "ivc", "label": 3} for n in range(2)
        ]
        for split, patient in (("train", 1), ("validation", 2), ("test", 3))
    }
    builder = Ultrabench(source=write(tmp_path / "butterfly_v1.0.1", rows), data_dir=tmp_path / "out")
    builder.download_and_prepare()
    index = ScanIndex.from_dataset(builder.data_dir)
    assert list(index.patient_names) == ["1", "2", "3"]
    assert {index.fine_names[label] for label in index.fine} == {"ivc"}
    assert About.read(Path(builder.data_dir)).confirmed


def table(tmp_path: Path, patients: dict[str, str]) -> Path:
    path = tmp_path / "patients.csv"
    path.write_text("source,patient\n" + "".join(f"{clip},{patient}\n" for clip, patient in patients.items()))
    return path


def test_a_published_split_that_shares_patients_is_refused(pocus, tmp_path):
    shared = table(tmp_path, {"Reg_a.mp4": "7", "Pne_b.mp4": "8", "Cov_c.gif": "9", "Reg_d.mp4": "7"})
    with pytest.raises(
        InputError, match=r"^2 of 2 test frames in .* are of patients in train or validation, the first 7. Use --split="
    ):
        Ultrabench(source=pocus, patients=shared, data_dir=tmp_path / "out").download_and_prepare()
    builder = Ultrabench(source=pocus, patients=shared, split="patient", data_dir=tmp_path / "by")
    found, _ = builder.find(pocus)
    splits = {}
    for frame in found:
        splits.setdefault(frame.patient_id, set()).add(frame.split)
    assert all(len(of_patient) == 1 for of_patient in splits.values())
    assert {frame.read()["scan_id"] for frame in found if frame.patient_id == "7"} == {"Reg_a.mp4", "Reg_d.mp4"}


def test_a_table_lacks_a_clip(pocus, tmp_path):
    part = table(tmp_path, {"Reg_a.mp4": "7", "Pne_b.mp4": "8"})
    with pytest.raises(InputError, match=r"names no patient of 2 source\(s\) \(of 4\), the first Cov_c.gif. Add a row"):
        Ultrabench(source=pocus, patients=part, data_dir=tmp_path / "out").find(pocus)


def test_a_frame_without_a_mask(mmotu, tmp_path):
    train = json.loads((mmotu / "train.json").read_text())
    train.append({**train[0], "image": "images/2.png", "tumor_mask_binary": None})
    (mmotu / "validation.json").write_text("[]")
    (mmotu / "train.json").write_text(json.dumps(train))
    with pytest.raises(
        InputError, match=r"lacks the image or the mask of 1 frame\(s\), the first 2. Use --skip_missing"
    ):
        Ultrabench(source=mmotu, data_dir=tmp_path / "out").find(mmotu)
    found, missing = Ultrabench(source=mmotu, skip_missing=True, data_dir=tmp_path / "out").find(mmotu)
    assert ([frame.frame_id for frame in found], missing) == (["1", "3"], ["2"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 3}, "label must be one of 0 regular, 1 pneumonia, 2 covid; got 3."),
        ({"label": True}, "label must be one of 0 regular, 1 pneumonia, 2 covid; got True."),
        ({"label": None}, "label must be one of 0 regular, 1 pneumonia, 2 covid; got None."),
        ({"source": None}, "source must be a name or a number; got None."),
        ({"image": None}, "image is missing. UltraBench writes one for every frame."),
        ({"image": "../a.png"}, "image must be a path in {pocus}; got '../a.png'."),
        ({"image": "/a.png"}, "image must be a path in {pocus}; got '/a.png'."),
        ({"image": 5}, "image must be a path in {pocus}; got 5."),
    ],
)
def test_bad_entries_are_one_line(pocus, tmp_path, capsys, change, message):
    rows = json.loads((pocus / "test.json").read_text())
    rows[1] |= change
    (pocus / "test.json").write_text(json.dumps(rows))
    expected = f"error: {pocus / 'test.json'}, frame 1: {message.format(pocus=pocus)}"
    assert error_of(capsys, f"--source={pocus}", f"--out={tmp_path / 'out'}") == expected


def test_bad_folders_are_one_line(pocus, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    assert error_of(capsys, out).startswith("error: --source is missing. Set it to the folder that UltraBench wrote")
    other = pocus.rename(tmp_path / "lungs_v1.0.1")
    assert error_of(capsys, f"--source={other}", out).endswith(f"Sets: {', '.join(SETS)}.")
    pocus = other.rename(tmp_path / "pocus_v1.0.1")
    (pocus / "validation.json").rename(pocus / "val.json")
    assert "has no validation.json. UltraBench writes train" in error_of(capsys, f"--source={pocus}", out)
    (pocus / "validation.json").write_text("{}")
    assert "must be a list of objects" in error_of(capsys, f"--source={pocus}", out)
    (pocus / "validation.json").write_text("[")
    assert "is not JSON" in error_of(capsys, f"--source={pocus}", out)
    assert error_of(capsys, f"--source={pocus}", out, "--split=random") == (
        "error: --split must be one of published, patient; got 'random'."
    )


def test_the_same_command_again(pocus, tmp_path, capsys):
    args = ["ultrabench", f"--source={pocus}", f"--out={tmp_path / 'out'}"]
    ingest.main(args)
    ingest.main(args)
    assert "is already prepared: nothing to do." in capsys.readouterr().out
    assert "split was published and is now patient" in error_of(capsys, *args[1:], "--split=patient")
    rows = json.loads((pocus / "test.json").read_text())
    rows[0]["label"] = 1
    (pocus / "test.json").write_text(json.dumps(rows, indent=4))
    assert "tables_sha256 was" in error_of(capsys, *args[1:])
