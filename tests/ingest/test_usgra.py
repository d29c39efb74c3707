"""USGRA_SEG: the publisher's split, masks, and what is refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest import command as ingest
from awcl_jax.ingest.public.usgra import Usgra
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import decoded_records, speckle

NAMES = {"train": ("0000", "0002"), "test": ("0001",)}


def mask_of(name: str) -> np.ndarray:
    return speckle(name) % 3


@pytest.fixture
def source(tmp_path) -> Path:
    for split, names in NAMES.items():
        for kind, draw in (("images", speckle), ("masks", mask_of)):
            folder = tmp_path / "usgra" / split / kind
            folder.mkdir(parents=True)
            for name in names:
                cv2.imwrite(str(folder / f"{name}.png"), draw(name))
    return tmp_path / "usgra"


def test_prepared_records(source, tmp_path):
    records = decoded_records(Usgra(source=source, data_dir=tmp_path / "out"))
    assert {split: [row["frame_id"].decode() for row in rows] for split, rows in records.items()} == {
        "train": ["train/0000", "train/0002"],
        "test": ["test/0001"],
    }
    for rows in records.values():
        for row in rows:
            name = row["frame_id"].decode().partition("/")[2]
            np.testing.assert_array_equal(row["image"][..., 0], speckle(name))
            np.testing.assert_array_equal(row["mask"][..., 0], mask_of(name))
            assert np.isnan(row["pixel_mm"])


def test_images_of_one_name_are_two_frames(source, tmp_path):
    for kind in ("images", "masks"):
        cv2.imwrite(str(source / "test" / kind / "0000.png"), mask_of("other") if kind == "masks" else speckle("other"))
    found, _ = Usgra(source=source, data_dir=tmp_path / "out").find(source)
    assert len({frame.patient_id for frame in found}) == len(found) == 4


def test_endings_in_capitals(source, tmp_path):
    expected = [frame.read() for frame in Usgra(source=source, data_dir=tmp_path / "out").find(source)[0]]
    for path in sorted(source.rglob("*.png")):
        path.rename(path.with_suffix(".PNG"))
    found, missing = Usgra(source=source, data_dir=tmp_path / "out").find(source)
    assert missing == []
    np.testing.assert_equal([frame.read() for frame in found], expected)


def test_an_image_without_a_mask(source, tmp_path):
    (source / "train/masks/0002.png").unlink()
    with pytest.raises(InputError, match=r"1 image\(s\) \(of 3\) without a mask, the first train/0002.png. Use --skip"):
        Usgra(source=source, data_dir=tmp_path / "out").find(source)
    found, missing = Usgra(source=source, data_dir=tmp_path / "out", skip_missing=True).find(source)
    assert (len(found), missing) == (2, ["train/0002"])


@pytest.mark.parametrize("part", ["test/masks", "train"])
def test_another_layout(source, tmp_path, part):
    (source / part).rename(tmp_path / "away")
    with pytest.raises(
        InputError, match=r"The folder .* does not exist. Set --source to the folder with train/ and test/"
    ):
        Usgra(source=source, data_dir=tmp_path / "out").find(source)


def test_bad_sources_are_one_line(tmp_path, capsys):
    def error_of(*args: str) -> str:
        with pytest.raises(SystemExit):
            ingest.main(["usgra", *args, f"--out={tmp_path / 'out'}"])
        return capsys.readouterr().err.splitlines()[-1]

    assert error_of() == "error: --source is missing. Set it to the folder with the unpacked usgra."
    assert error_of(f"--source={tmp_path / 'no'}").startswith(
        f"error: The folder {tmp_path / 'no'} does not exist. Set --source"
    )
    for part in ("train/images", "train/masks", "test/images", "test/masks"):
        (tmp_path / "bare" / part).mkdir(parents=True)
    assert "has no frames of usgra" in error_of(f"--source={tmp_path / 'bare'}")


def test_real_data(real_data, tmp_path):
    Usgra(source=real_data / "USGRA_SEG", data_dir=tmp_path).download_and_prepare()
    index = ScanIndex.from_dataset(tmp_path)
    assert {name: len(index.split(name)) for name in index.split_names} == {"train": 204, "test": 40}
    masks = FrameReader(index, size=320).read_masks(np.arange(len(index)))
    # Counted over the files: all frames show a nerve, 183 + 36 of them a vessel.
    assert [int((masks == value).any(axis=(1, 2)).sum()) for value in (1, 2)] == [244, 219]
