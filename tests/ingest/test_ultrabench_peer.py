"""Sets that UltraBench's own command prepares from made-up files in the publishers' layouts, and from real clips."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest.public.ultrabench import SETS, SPLITS, Ultrabench
from tests.helpers.frames import decoded_records

pytest.importorskip("ultrabench")

pytestmark = [pytest.mark.slow, pytest.mark.peers]

_RNG = np.random.default_rng(0)
_SIZE = (120, 130)


def picture(path: Path, *, colours: bool = False) -> None:
    """Write a picture of noise on black."""
    image = np.zeros((*_SIZE, 3) if colours else _SIZE, np.uint8)
    image[10:110, 15:115] = _RNG.integers(1, 256, (100, 100, *[3] * colours))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


def square(value: int) -> np.ndarray:
    mask = np.zeros(_SIZE, np.uint8)
    mask[40:70, 40:80] = value
    return mask


def butterfly(raw: Path) -> None:
    for subset, patients in (("training", range(1, 6)), ("test", range(6, 8))):
        for patient in patients:
            for view in ("carotid", "plax"):
                picture(raw / subset / str(patient) / view / "0.png")


def gbcu(raw: Path) -> None:
    names = [f"im{number:05d}.jpg" for number in range(36)]
    for name in names:
        picture(raw / "imgs" / name, colours=True)
    boxes = {name: {"dim": [130, 120], "bbs": [["nml", [1, 2, 30, 40]]]} for name in names}
    (raw / "bbox_annot.json").write_text(json.dumps(boxes))
    for file, part in (("train.txt", names[:30]), ("test.txt", names[30:])):
        (raw / file).write_text("".join(f"{name},{at % 3}\n" for at, name in enumerate(part)))


def psfhs(raw: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    for folder in ("image_mha", "label_mha"):
        (raw / folder).mkdir(parents=True)
    for number in range(12):
        noise = np.zeros((256, 256), np.uint8)
        noise[8:248, 8:248] = _RNG.integers(2, 256, (240, 240))
        structures = np.zeros((256, 256), np.uint8)
        structures[60:90, 60:100], structures[120:200, 100:200] = 1, 2
        sitk.WriteImage(sitk.GetImageFromArray(np.stack([noise] * 3)), raw / "image_mha" / f"{number:05d}.mha")
        sitk.WriteImage(sitk.GetImageFromArray(structures), raw / "label_mha" / f"{number:05d}.mha")


def mmotu(raw: Path) -> None:
    colours = [(64, 0, 0), (0, 64, 0), (0, 0, 64)]  # RGB, of labels 0, 1 and 2
    (raw / "OTU_2d" / "annotations").mkdir(parents=True)
    for file, names in (("train", range(1, 16)), ("val", range(16, 19))):
        (raw / "OTU_2d" / f"{file}.txt").write_text("".join(f"{name}\n" for name in names))
        rows = "".join(f"{name}.JPG  {name % 3}\n" for name in names)
        (raw / "OTU_2d" / f"{file}_cls.txt").write_text(rows)
        for name in names:
            picture(raw / "OTU_2d" / "images" / f"{name}.JPG", colours=True)
            mask = square(1)
            notes = raw / "OTU_2d" / "annotations"
            cv2.imwrite(str(notes / f"{name}_binary.PNG"), mask * 255)
            cv2.imwrite(str(notes / f"{name}.PNG"), mask[..., None] * np.uint8(colours[name % 3][::-1]))


def aul(raw: Path) -> None:
    for finding in ("Normal", "Benign", "Malignant"):
        for number in range(12):
            picture(raw / finding / "image" / f"{number}.jpg", colours=True)
            for kind in ("outline", "liver", *["mass"] * (finding != "Normal")):
                path = raw / finding / "segmentation" / kind / f"{number}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps([[30, 30], [90, 30], [90, 90], [30, 90]]))


def camus(raw: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    for patient in range(1, 8):
        folder = raw / "database_nifti" / f"patient{patient:04d}"
        folder.mkdir(parents=True)
        for view in ("2CH", "4CH"):
            greys = _RNG.integers(1, 256, (60, 50, 2)).astype(np.uint8)
            classes = np.zeros((60, 50, 2), np.uint8)
            classes[10:20, 10:20], classes[20:30, 10:20], classes[30:40, 10:20] = 1, 2, 3
            for end, values in (("", greys), ("_gt", classes)):
                name = f"patient{patient:04d}_{view}_half_sequence{end}.nii.gz"
                nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / name)
            (folder / f"Info_{view}.cfg").write_text(
                f"ED: 1\nES: 2\nNbFrame: 2\nSex: F\nAge: 50\nImageQuality: {('Poor', 'Medium', 'Good')[patient % 3]}\n"
                "EF: 50\nFrameRate: 50\n"
            )


def fatty_liver(raw: Path) -> None:
    scipy = pytest.importorskip("scipy.io")
    rows = np.zeros((1, 10), [("id", "O"), ("class", "O"), ("fat", "O"), ("images", "O")])
    for patient in range(10):
        frames = np.zeros((2, *_SIZE), np.uint8)
        frames[:, 10:110, 15:115] = _RNG.integers(1, 256, (2, 100, 100))
        rows[0, patient] = (np.int64(patient + 1), np.uint8(patient % 2), np.uint8(patient), frames)
    raw.mkdir(parents=True, exist_ok=True)
    scipy.savemat(raw / "dataset_liver.mat", {"data": rows})


MAKERS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "butterfly": (butterfly, "butterfly", ""),
    "gbcu": (gbcu, "gbcu", ""),
    "psfhs": (psfhs, "psfhs", ""),
    "mmotu": (mmotu, "mmotu", ""),
    "aul_mass": (aul, "aul", ""),
    "aul_liver": (aul, "aul", ""),
    "camus": (camus, "camus", ""),
    "fatty_liver": (fatty_liver, "fatty-liver", "dataset_liver.mat"),
}
"""Set -> (writer of its raw files, command of UltraBench, its raw file if it is one)."""


def ultrabench(command: str, raw: Path, out: Path) -> None:
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "ultrabench", command, str(raw), str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def prepared(folder: Path) -> dict[str, list[dict]]:
    return {split: json.loads((folder / f"{file}.json").read_text()) for file, split in SPLITS.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_what_ultrabench_wrote(tmp_path, name):
    write, command, file = MAKERS[name]
    write(tmp_path / "raw")
    ultrabench(command, tmp_path / "raw" / file, tmp_path / "made")
    source = tmp_path / "made" / f"{name}_v1.0.1"
    records = decoded_records(Ultrabench(source=source, data_dir=tmp_path / "out"))
    entries = prepared(source)
    one = SETS[name]
    for split, rows in records.items():
        assert len(rows) == len(entries[split])
        for row, entry in zip(rows, entries[split], strict=True):
            file = cv2.imread(str(source / entry["image"]), cv2.IMREAD_UNCHANGED)
            assert row["image"].shape[:2] == file.shape[:2]
            if file.ndim == 2:
                np.testing.assert_array_equal(row["image"][..., 0], file)
            assert row["anatomy_fine"] == entry.get("label", 0)
            if one.patients.key:
                assert row["patient_id"].decode() == str(entry[one.patients.key])
            if one.mask:
                mask = cv2.imread(str(source / entry[one.mask]), cv2.IMREAD_UNCHANGED)
                np.testing.assert_array_equal(row["mask"][..., 0], mask != 0 if len(one.structures) == 2 else mask)


def test_real_clips(real_data, tmp_path):
    clips = tmp_path / "raw" / "data" / "pocus_videos" / "convex"
    clips.parent.mkdir(parents=True)
    clips.symlink_to(real_data / "POCUS_LUNG" / "videos")
    (tmp_path / "raw" / "data" / "pocus_images" / "convex").mkdir(parents=True)
    ultrabench("pocus", tmp_path / "raw", tmp_path / "made")
    source = tmp_path / "made" / "pocus_v1.0.1"
    builder = Ultrabench(source=source, data_dir=tmp_path / "out")
    builder.download_and_prepare()
    index = ScanIndex.from_dataset(builder.data_dir)
    assert len(index) == sum(map(len, prepared(source).values()))
    rows = (real_data / "POCUS_LUNG" / "videos.csv").read_text().splitlines()[1:]
    patients = tmp_path / "patients.csv"
    patients.write_text("source,patient\n" + "".join(",".join(row.split(",")[:2]) + "\n" for row in rows))
    by_patient = Ultrabench(source=source, patients=patients, split="patient", data_dir=tmp_path / "by")
    of = {}
    for frame in by_patient.find(source)[0]:
        of.setdefault(frame.patient_id, set()).add(frame.split)
    assert all(len(splits) == 1 for splits in of.values())
