"""BUSI: findings, masks of several lesions, and what is refused."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest.public.busi import Busi
from awcl_jax.ingest.public.folder import draw_split
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import decoded_records, speckle

pytestmark = pytest.mark.quick

FRAMES = {"benign": 12, "malignant": 9, "normal": 4}


def lesion(number: int) -> np.ndarray:
    """A box of its own for each number; none for 0."""
    mask = np.zeros((32, 40), np.uint8)
    if number:
        mask[2 * number : 2 * number + 5, 3 * number : 3 * number + 6] = 255
    return mask


@pytest.fixture
def source(tmp_path) -> Path:
    root = tmp_path / "Dataset_BUSI_with_GT"
    for finding, count in FRAMES.items():
        (root / finding).mkdir(parents=True)
        for number in range(1, count + 1):
            name = f"{finding} ({number})"
            cv2.imwrite(str(root / finding / f"{name}.png"), np.repeat(speckle(name)[..., None], 3, axis=2))
            mask = lesion(0 if finding == "normal" else 1)
            cv2.imwrite(str(root / finding / f"{name}_mask.png"), mask)
    for more in (1, 2):
        cv2.imwrite(str(root / "benign" / f"benign (4)_mask_{more}.png"), lesion(3 * more))
    return root


def find(source: Path, tmp_path: Path, **flags):
    return Busi(source=source, data_dir=tmp_path / "out", **flags).find(source)


def test_prepared_records(source, tmp_path):
    records = decoded_records(Busi(source=source, data_dir=tmp_path / "out"))
    rows = {row["frame_id"].decode(): row for of in records.values() for row in of}
    assert len(rows) == 25
    for name, row in rows.items():
        np.testing.assert_array_equal(row["image"][..., 0], speckle(name))
        expected = lesion(0 if name.startswith("normal") else 1)
        if name == "benign (4)":
            expected = lesion(1) | lesion(3) | lesion(6)
        np.testing.assert_array_equal(row["mask"][..., 0], expected // 255)
    for split, of in records.items():
        assert {draw_split(row["frame_id"].decode()) for row in of} == {split}
    index = ScanIndex.from_dataset(tmp_path / "out")
    assert [int((index.fine == finding).sum()) for finding in range(3)] == [12, 9, 4]
    metadata = json.loads((tmp_path / "out/busi/1.0.0/metadata.json").read_text())
    assert len(metadata["unknown_size"]) == 25


def test_frames_are_in_the_order_of_their_numbers(source, tmp_path):
    found, _ = find(source, tmp_path)
    assert [frame.frame_id for frame in found][:12] == [f"benign ({number})" for number in range(1, 13)]


def test_missing_masks(source, tmp_path):
    (source / "benign/benign (2)_mask.png").unlink()
    (source / "malignant/malignant (3).png").unlink()
    with pytest.raises(InputError, match=r"of 2 frame\(s\), the first benign \(2\).png. Use --skip_missing"):
        find(source, tmp_path)
    found, missing = find(source, tmp_path, skip_missing=True)
    assert (len(found), missing) == (23, ["benign (2)", "malignant (3)"])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (speckle("x"), r"_mask.png must have the value 0 and one other; got \d+ values from 0"),
        (np.full((32, 40), 255, np.uint8), "must have the value 0 and one other; got 1 values from 255"),
        (lesion(1)[:, 1:], "as many pixels as its image, 40 x 32; got 39 x 32"),
    ],
)
def test_a_mask_that_does_not_fit(source, tmp_path, mask, message):
    cv2.imwrite(str(source / "benign" / "benign (5)_mask.png"), mask)
    with pytest.raises(InputError, match=f"{message}.*--skip_broken"):
        Busi(source=source, data_dir=tmp_path / "out").download_and_prepare()


def test_another_layout(source, tmp_path):
    (source / "normal").rename(source / "healthy")
    with pytest.raises(
        InputError, match=r"The folder .*normal does not exist. Set --source to the folder with benign/"
    ):
        find(source, tmp_path)
