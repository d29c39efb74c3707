"""CAMUS: the publisher's files and split, both edges of a pixel, and what is refused."""

import importlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest.public.camus import MASKS, SUBGROUPS, Camus, read_nifti
from awcl_jax.ingest.public.folder import draw_split
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import decoded_records, speckle

PATIENTS = {"training": ("patient0001", "patient0003"), "validation": ("patient0002",), "testing": ("patient0004",)}
FRAMES = ("2CH_ED", "2CH_ES", "4CH_ED", "4CH_ES")


def mask_of(name: str) -> np.ndarray:
    return speckle(name) % 4


def save(path: Path, image: np.ndarray, *, edges: tuple[float, float] = (0.3, 0.15)) -> None:
    """Write an image [h, w] with its pixels' width and height."""
    file = nibabel.Nifti1Image(image.T, np.diag([*edges, 1.0, 1.0]))
    file.header.set_xyzt_units("mm")
    nibabel.save(file, path)


@pytest.fixture
def source(tmp_path) -> Path:
    """Four patients with all that the publisher gives of them."""
    root = tmp_path / "CAMUS_public"
    (root / "database_split").mkdir(parents=True)
    for subgroup, patients in PATIENTS.items():
        (root / "database_split" / f"subgroup_{subgroup}.txt").write_text("\n".join(patients) + "\n")
        for patient in patients:
            folder = root / "database_nifti" / patient
            folder.mkdir(parents=True)
            for frame in FRAMES:
                name = f"{patient}_{frame}"
                save(folder / f"{name}.nii.gz", speckle(name))
                save(folder / f"{name}_gt.nii.gz", mask_of(name))
            save(folder / f"{patient}_2CH_half_sequence.nii.gz", np.zeros((4, 4), np.uint8))
            (folder / "Info_2CH.cfg").write_text("ED: 1\nES: 18\nNbFrame: 18\nImageQuality: Good\n")
    return root


def find(source: Path, tmp_path: Path, **flags):
    return Camus(source=source, data_dir=tmp_path / "out", **flags).find(source)


def test_prepared_records(source, tmp_path):
    records = decoded_records(Camus(source=source, data_dir=tmp_path / "out"))
    for subgroup, split in SUBGROUPS.items():
        names = [row["frame_id"].decode() for row in records[split]]
        assert names == [f"{patient}_{frame}" for patient in PATIENTS[subgroup] for frame in FRAMES]
        for row, name in zip(records[split], names, strict=True):
            np.testing.assert_array_equal(row["image"][..., 0], speckle(name))
            np.testing.assert_array_equal(row["mask"][..., 0], mask_of(name))
            assert row["patient_id"].decode() == name.partition("_")[0]
    index = ScanIndex.from_dataset(tmp_path / "out")
    assert [index.fine_names[fine] for fine in index.fine[:4]] == ["2CH", "2CH", "4CH", "4CH"]
    reader = FrameReader(index, size=8)
    assert reader.mask_names == MASKS
    # 32 x 40 pixels, 0.15 mm high and 0.3 mm wide, as 8 x 8.
    np.testing.assert_allclose(reader.pixel_sizes(np.array([0, 5])), [[0.6, 1.5]] * 2, rtol=1e-6)


def test_without_the_publishers_split_patients_are_split_here(source, tmp_path):
    for file in (source / "database_split").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"has no subgroup_training.txt"):
        find(source, tmp_path)
    (source / "database_split").rmdir()
    found, _ = find(source, tmp_path)
    assert {frame.patient_id: frame.split for frame in found} == {
        patient: draw_split(patient) for patients in PATIENTS.values() for patient in patients
    }


def test_a_patient_in_two_subgroups_or_in_none(source, tmp_path):
    path = source / "database_split" / "subgroup_testing.txt"
    path.write_text("patient0004\npatient0002\n")
    with pytest.raises(InputError, match="lists patient0002 in val and test"):
        find(source, tmp_path)
    path.write_text("")
    with pytest.raises(InputError, match=r"no subgroup for 1 patient\(s\) in .* the first patient0004"):
        find(source, tmp_path)


def test_missing_files(source, tmp_path):
    (source / "database_nifti/patient0002/patient0002_4CH_ES_gt.nii.gz").unlink()
    (source / "database_split/subgroup_testing.txt").write_text("patient0004\npatient0009\n")
    with pytest.raises(InputError, match=r"of 5 frame\(s\), the first patient0002_4CH_ES.nii.gz. Use --skip_missing"):
        find(source, tmp_path)
    found, missing = find(source, tmp_path, skip_missing=True)
    assert (len(found), len(missing)) == (15, 5)


def test_broken_and_other_files(source, tmp_path):
    path = source / "database_nifti/patient0001/patient0001_2CH_ED.nii.gz"
    whole = path.read_bytes()
    for data in (b"", b"no nifti", whole[:200], whole[:-40]):
        path.write_bytes(data)
        with pytest.raises(InputError, match="is broken: it cannot be read as NIfTI"):
            read_nifti(path)
    save(path, speckle("x").astype(np.float32) + np.float32(0.5))
    with pytest.raises(InputError, match=r"must have values 0, 1, ..., 255; got 0.5 to 255.5"):
        read_nifti(path)
    save(path, np.zeros((3, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(InputError, match=r"must have grey values; got colours \(R, G, B\)"):
        read_nifti(path)
    save(path, np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(InputError, match="two dimensions"):
        read_nifti(path)
    save(path, speckle("x").astype(np.int16)[..., None].transpose(2, 0, 1))
    np.testing.assert_array_equal(read_nifti(path)[0], speckle("x"))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (mask_of("x") + 1, r"_gt.nii.gz has the unknown values 4; known are 0 background, 1 left ventricle"),
        (mask_of("x")[:-1], r"_gt.nii.gz must have as many pixels as its image, 40 x 32; got 40 x 31"),
    ],
)
def test_a_mask_that_does_not_fit(source, tmp_path, mask, message):
    save(source / "database_nifti/patient0001/patient0001_2CH_ED_gt.nii.gz", mask)
    with pytest.raises(InputError, match=f"{message}.*--skip_broken"):
        Camus(source=source, data_dir=tmp_path / "out").download_and_prepare()


def test_without_nibabel(source, monkeypatch):
    def fail(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(InputError, match=r"pip install 'awcl_jax\[nifti\]'"):
        read_nifti(source / "database_nifti/patient0001/patient0001_2CH_ED.nii.gz")
