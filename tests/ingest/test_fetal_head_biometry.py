"""Masked brains of FETAL_PLANES_DB: whose masks they are, and what is refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest import command as ingest
from awcl_jax.ingest.public.fetal_head_biometry import MASKS, FetalHeadBiometry
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import PLANES_ROWS, decoded_records, speckle


def mask_of(name: str) -> np.ndarray:
    """A mask [32, 40] that only this name has."""
    return speckle(name) // 64


@pytest.fixture
def masks(planes, tmp_path) -> Path:
    """Masks of three of the frames."""
    planes.write(*PLANES_ROWS)
    folder = tmp_path / "masks"
    folder.mkdir()
    for name in ("a2", "b1", "c1"):
        cv2.imwrite(str(folder / f"{name}.png"), mask_of(name))
    return folder


def test_prepared_records(planes, masks, tmp_path):
    records = decoded_records(FetalHeadBiometry(source=planes.folder, masks=masks, data_dir=tmp_path / "out"))
    assert {split: [row["frame_id"] for row in rows] for split, rows in records.items()} == {
        "train": [b"a2", b"b1"],
        "test": [b"c1"],
    }
    assert records["train"][0]["patient_id"] == b"00001"
    for row in [*records["train"], *records["test"]]:
        np.testing.assert_array_equal(row["image"][..., 0], speckle(row["frame_id"].decode()))
        np.testing.assert_array_equal(row["mask"][..., 0], mask_of(row["frame_id"].decode()))


def test_a_value_that_means_nothing(planes, masks, tmp_path):
    cv2.imwrite(str(masks / "b1.png"), np.where(mask_of("b1") == 3, 255, mask_of("b1")).astype(np.uint8))
    builder = FetalHeadBiometry(source=planes.folder, masks=masks, data_dir=tmp_path / "out")
    with pytest.raises(
        InputError, match=r"b1.png has the unknown values 255; known are 0 background, 1 brain, 2 .*--skip_broken"
    ):
        builder.download_and_prepare()


def test_a_mask_of_another_size(planes, masks, tmp_path):
    cv2.imwrite(str(masks / "b1.png"), mask_of("b1")[:, :-1])
    builder = FetalHeadBiometry(source=planes.folder, masks=masks, data_dir=tmp_path / "out")
    with pytest.raises(InputError, match=r"b1.png must have as many pixels as its image, 40 x 32; got 39 x 32"):
        builder.download_and_prepare()
    kept = decoded_records(
        FetalHeadBiometry(source=planes.folder, masks=masks, data_dir=tmp_path / "out", skip_broken=True)
    )
    assert [row["frame_id"] for row in kept["train"]] == [b"a2"]


def test_masks_and_images_that_do_not_meet(planes, masks, tmp_path):
    def find(**flags):
        return FetalHeadBiometry(source=planes.folder, data_dir=tmp_path / "out", **flags).find(planes.folder)

    (planes.folder / "Images" / "b1.png").unlink()
    with pytest.raises(InputError, match=r"has 1 mask\(s\) \(of 3\) of images .* the first b1.png. Use --skip_missing"):
        find(masks=masks)
    found, missing = find(masks=masks, skip_missing=True)
    assert ([frame.frame_id for frame in found], missing) == (["a2", "c1"], ["b1"])
    cv2.imwrite(str(masks / "zz.png"), mask_of("zz"))
    with pytest.raises(InputError, match=r"1 mask\(s\) of frames .* does not list, the first zz.png"):
        find(masks=masks)
    with pytest.raises(InputError, match="--masks is missing"):
        find()
    with pytest.raises(InputError, match=r"The folder .*nowhere does not exist. Set --masks"):
        find(masks=tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="has no masks"):
        find(masks=tmp_path / "bare")


def test_the_command(planes, masks, tmp_path, capsys):
    args = ["fetal_head_biometry", f"--source={planes.folder}", f"--masks={masks}", f"--out={tmp_path / 'out'}"]
    ingest.main(args)
    printed = capsys.readouterr().out
    assert "The pixel size of 3 frame(s) with masks is unknown, the first a2" in printed
    ingest.main(args)
    assert "is already prepared" in capsys.readouterr().out
    cv2.imwrite(str(masks / "d1.png"), mask_of("d1"))
    with pytest.raises(SystemExit):
        ingest.main(args)
    assert "mask_files was 3 and is now 4" in capsys.readouterr().err


def test_real_data(real_data, tmp_path):
    folder = real_data / "FETAL_HEAD_BIOMETRY" / "masks"
    FetalHeadBiometry(source=real_data / "FETAL_PLANES_DB", masks=folder, data_dir=tmp_path).download_and_prepare()
    index = ScanIndex.from_dataset(tmp_path)
    # Counted with ls, cut and sort.
    assert (len(index), len(index.patient_names)) == (440, 335)
    assert {name: len(index.split(name)) for name in index.split_names} == {"train": 290, "test": 150}
    reader, frames = FrameReader(index, size=256), np.arange(0, 440, 40)
    assert reader.mask_names == MASKS
    for mask, name in zip(reader.read_masks(frames), index.frame_ids[frames], strict=True):
        np.testing.assert_array_equal(mask, cv2.imread(str(folder / f"{name}.png"), cv2.IMREAD_UNCHANGED))
