"""EchoNet-Dynamic: frames out of videos, ventricles out of chords, and what is refused."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest.public.echonet_dynamic import EchonetDynamic, area, fill_outline, outline, read_tracings
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import decoded_records

SIZE = 112
FILES = "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split"
# Video, split, and the traced frames with the half length of the ventricle.
VIDEOS = {
    "0X1A": ("TRAIN", {3: 30, 9: 22}),
    "0X1B": ("TRAIN", {7: 20, 2: 28}),
    "0X1C": ("VAL", {1: 31, 5: 25}),
    "0X1D": ("TEST", {0: 31, 4: 25}),
}


def chords_of(half: float, count: int = 20) -> np.ndarray:
    """An ellipse about (60, 50), its long axis upright: the axis, and chords across it from top to bottom."""
    at = np.linspace(-0.98, 0.98, count)
    wide = 0.5 * half * np.sqrt(1 - at**2)
    rows = 50 + half * at
    return np.concatenate([[[60, 50 - half, 60, 50 + half]], np.stack([60 - wide, rows, 60 + wide, rows], axis=1)])


def shade(frame: int) -> int:
    """The grey of a frame, by which it is told apart after compression."""
    return 40 + 15 * frame


@pytest.fixture
def source(tmp_path) -> Path:
    root = tmp_path / "EchoNet-Dynamic"
    (root / "Videos").mkdir(parents=True)
    rows = [f"{video},55.0,30.0,70.0,{SIZE},{SIZE},50,12,{split}" for video, (split, _) in VIDEOS.items()]
    (root / "FileList.csv").write_text("\n".join([FILES, *rows]) + "\n")
    lines = ["FileName,X1,Y1,X2,Y2,Frame"]
    for video, (_, frames) in VIDEOS.items():
        lines += [
            ",".join([f"{video}.avi", *map(str, chord), str(frame)])
            for frame, half in frames.items()
            for chord in chords_of(half).tolist()
        ]
        writer = cv2.VideoWriter(str(root / f"Videos/{video}.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 50, (SIZE, SIZE))
        for frame in range(12):
            picture = np.full((SIZE, SIZE, 3), shade(frame), np.uint8)
            picture[:8] = 0
            writer.write(picture)
        writer.release()
    (root / "VolumeTracings.csv").write_text("\n".join(lines) + "\n")
    return root


def find(source: Path, tmp_path: Path, **flags):
    return EchonetDynamic(source=source, data_dir=tmp_path / "out", **flags).find(source)


def test_prepared_records(source, tmp_path):
    records = decoded_records(EchonetDynamic(source=source, data_dir=tmp_path / "out"))
    traced = {"0X1A_ED": (3, 30), "0X1A_ES": (9, 22), "0X1B_ED": (2, 28), "0X1B_ES": (7, 20)}
    assert [row["frame_id"].decode() for row in records["train"]] == list(traced)
    assert [len(records[split]) for split in ("val", "test")] == [2, 2]
    for row, (frame, half) in zip(records["train"], traced.values(), strict=True):
        assert np.median(row["image"][20:]) == pytest.approx(shade(frame), abs=4)
        # Half an ellipse's axes are `half` and `half` / 2; its pixels are rounded to those on the line.
        assert row["mask"].sum() == pytest.approx(math.pi * half**2 / 2, rel=0.08)
        assert np.isnan(row["pixel_mm"])
    index = ScanIndex.from_dataset(tmp_path / "out")
    assert len(index.patient_names) == 4


def test_the_outline_goes_down_one_side_and_up_the_other():
    chords = np.array([[5, 0, 5, 9], [1, 2, 7, 2], [2, 5, 8, 5], [3, 8, 6, 8.0]])
    assert outline(chords).tolist() == [[1, 2], [2, 5], [3, 8], [6, 8], [8, 5], [7, 2]]
    # Trapezia between the chords: (6 + 6) / 2 x 3 and (6 + 3) / 2 x 3.
    assert area(chords) == pytest.approx(18 + 13.5)


@pytest.mark.parametrize("seed", range(8))
def test_the_inside_is_that_of_another_library(seed):
    rng = np.random.default_rng(seed)
    chords = chords_of(float(rng.uniform(8, 40)), count=int(rng.integers(2, 21))) + rng.normal(0, 2, 4)
    points = np.rint(outline(chords)).astype(np.float32)
    filled = fill_outline(chords, size=(SIZE, SIZE))
    expected = np.array([[cv2.pointPolygonTest(points, (x, y), False) >= 0 for x in range(SIZE)] for y in range(SIZE)])
    np.testing.assert_array_equal(filled, expected)


def test_an_outline_that_leaves_the_picture_is_cut():
    chords = chords_of(30) + np.array([60, 0, 60, 0])
    assert 0 < fill_outline(chords, size=(SIZE, SIZE)).sum() < fill_outline(chords, size=(SIZE, 200)).sum()


def test_splits_in_any_case_after_a_delimiter_line(source, tmp_path):
    expected = [(frame.frame_id, frame.split) for frame in find(source, tmp_path)[0]]
    path = source / "FileList.csv"
    text = path.read_text().replace("TRAIN", "train").replace("VAL", "Val").replace("TEST", "test")
    path.write_text(f"sep=;\n{text.replace(',', ';')}")
    for video in (source / "Videos").iterdir():
        video.rename(video.with_suffix(".AVI"))
    found, missing = find(source, tmp_path)
    assert ([(frame.frame_id, frame.split) for frame in found], missing) == (expected, [])
    assert all(frame.read()["image"] for frame in found)


def test_videos_that_are_missing_or_not_traced(source, tmp_path):
    (source / "Videos/0X1A.avi").unlink()
    path = source / "VolumeTracings.csv"
    kept = [line for line in path.read_text().splitlines() if not (line.startswith("0X1C") and line.endswith(",5"))]
    path.write_text("\n".join(kept))
    with pytest.raises(InputError, match=r"of 2 video\(s\) \(of 4\), the first 0X1A.avi. Use --skip_missing"):
        find(source, tmp_path)
    found, missing = find(source, tmp_path, skip_missing=True)
    assert (len(found), missing) == (4, ["0X1A", "0X1C"])


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("FileList.csv", "TRAIN", "TRIAN", "unknown Split 'TRIAN', did you mean 'TRAIN'"),
        ("FileList.csv", "0X1B,", "0X1A,", "FileName must be a file in Videos/, in one row only; got '0X1A'"),
        ("FileList.csv", "0X1B,", "../0X1B,", "in one row only; got '../0X1B'"),
        ("FileList.csv", "0X1B,", "0X1F,", "traces 0X1B, which FileList.csv does not list"),
        ("FileList.csv", "Split", "Set", r"lacks the column\(s\) Split"),
        ("VolumeTracings.csv", "50.0,", "x,", "must be a number; got 'x'"),
        ("VolumeTracings.csv", "50.0,", "nan,", "must be a number; got 'nan'"),
        ("VolumeTracings.csv", ",3\n", ",-3\n", "Frame must be a whole number >= 0; got '-3'"),
    ],
)
def test_tables_that_are_refused(source, tmp_path, file, old, new, message):
    path = source / file
    text = path.read_text().replace("60.0,20.0,60.0,80.0", "60.0,50.0,60.0,80.0")
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        find(source, tmp_path)


def test_too_few_chords(source):
    path = source / "VolumeTracings.csv"
    path.write_text("FileName,X1,Y1,X2,Y2,Frame\n0X1A.avi,1,2,3,4,7\n0X1A.avi,1,2,3,4,7\n")
    with pytest.raises(InputError, match=r"must have at least 3 chords for frame 7 of 0X1A; got 2"):
        read_tracings(source)


def test_a_video_that_is_too_short_or_none(source, tmp_path):
    (source / "Videos/0X1D.avi").write_bytes(b"no video")
    path = source / "VolumeTracings.csv"
    path.write_text(path.read_text().replace(",9\n", ",40\n"))
    with pytest.raises(
        InputError, match=r"0X1A.avi is broken: frame 40 is needed, but only 12 frame\(s\) can be.*--skip_broken"
    ):
        EchonetDynamic(source=source, data_dir=tmp_path / "out").download_and_prepare()
    path.write_text(path.read_text().replace(",40\n", ",9\n"))
    with pytest.raises(InputError, match=r"0X1D.avi is broken: frame 4 is needed, but only 0 frame\(s\)"):
        EchonetDynamic(source=source, data_dir=tmp_path / "out").download_and_prepare()
