"""What builders from a folder share: whose frames are in which split, and what tells one folder from another."""

import functools
from pathlib import Path

import numpy as np
import pytest

from awcl_jax.data.anatomy import HC18
from awcl_jax.data.png import encode_png
from awcl_jax.data.record import frame_features
from awcl_jax.ingest.public.folder import FolderBuilder, Found, accept_missing, draw_split, inventory, record_of
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import decoded_records, speckle

pytestmark = pytest.mark.quick


class Given(FolderBuilder):
    """Frames given as (id, patient, split); broken ones have a * in their id."""

    VERSION = "1.0.0"

    def __init__(self, *frames: tuple[str, str, str], **kwargs) -> None:
        self.frames = frames
        super().__init__(**kwargs)

    def _info(self):
        return self.describe(features=frame_features(HC18), license="", citation="", description="")

    def find(self, source: Path) -> tuple[list[Found], list[str]]:
        return [Found(*frame, functools.partial(read, *frame[:2])) for frame in self.frames], []


def read(name: str, patient: str) -> dict:
    if "*" in name:
        raise InputError(f"{name} is broken.")
    return record_of(name, image=encode_png(speckle(name)), patient_id=patient, fine="HCP", coarse="head")


def given(tmp_path: Path, *frames: tuple[str, str, str], **flags) -> Given:
    return Given(*frames, source=tmp_path, data_dir=tmp_path / "out", **flags)


def test_splits_hold_their_frames_in_order(tmp_path):
    records = decoded_records(given(tmp_path, ("b", "p", "test"), ("a", "q", "train"), ("c", "q", "train")))
    assert {split: [row["frame_id"] for row in rows] for split, rows in records.items()} == {
        "train": [b"a", b"c"],
        "test": [b"b"],
    }
    assert records["train"][0]["scan_id"] == b"q"
    np.testing.assert_array_equal(records["test"][0]["image"][..., 0], speckle("b"))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            [("a", "p", "train"), ("b", "q", "test"), ("c", "p", "test")],
            "has patient p in train and in test: test results",
        ),
        ([("a", "p", "train"), ("a", "q", "test")], "has the frame a twice"),
        ([], "has no frames of given. Is this the unpacked folder"),
        ([("a*", "p", "train"), ("b", "p", "train")], r"a\* is broken. Use --skip_broken to skip such frames"),
    ],
)
def test_folders_that_are_refused(tmp_path, frames, message):
    with pytest.raises(InputError, match=message):
        given(tmp_path, *frames).download_and_prepare()


def test_a_split_of_broken_frames_only_is_refused(tmp_path):
    frames = ("a", "p", "train"), ("b*", "q", "test")
    with pytest.raises(InputError, match="Every image of the test split"):
        given(tmp_path, *frames, skip_broken=True).download_and_prepare()


@pytest.mark.parametrize(("missing", "found", "skip"), [((), (), False), (("a",), ("b",), True), ((), ("b",), False)])
def test_what_may_be_missing(missing, found, skip):
    accept_missing(missing, found=found, skip=skip, what="x lacks 1 frame")


@pytest.mark.parametrize(
    ("found", "skip", "remedy"),
    [
        ((), True, "Is this the unpacked folder"),
        ((), False, "Is this the unpacked folder"),
        (("b",), False, "Use --skip_missing to skip"),
    ],
)
def test_what_may_not_be_missing(found, skip, remedy):
    with pytest.raises(InputError, match=f"x lacks 1 frame, the first a. {remedy}"):
        accept_missing(("a",), found=found, skip=skip, what="x lacks 1 frame")


def test_seventy_ten_and_twenty_of_a_hundred():
    splits = [draw_split(f"patient {number}") for number in range(20_000)]
    shares = [splits.count(split) / 20_000 for split in ("train", "val", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.01)


def test_an_inventory_tells_names_sizes_and_what_tables_say(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"12")
    (tmp_path / "table.csv").write_text("x,1")
    first = inventory(tmp_path)
    assert first["files"] == 2
    assert inventory(tmp_path) == first
    seen = [first]
    for path, data in (("table.csv", b"x,2"), ("images/a.png", b"123"), ("images/b.png", b"")):
        (tmp_path / path).write_bytes(data)
        assert inventory(tmp_path) not in seen
        seen.append(inventory(tmp_path))
