"""HC18: outlines become heads, names become studies, and what is refused."""

import csv
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest.public.folder import draw_split
from awcl_jax.ingest.public.hc18 import CSV_NAME, FOLDER, Hc18, fill_outline, study_of
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import decoded_records, frame_record, speckle

HEADER = "filename,pixel size(mm),head circumference (mm)"
HEIGHT, WIDTH = 120, 160


def ellipse(centre: tuple[float, float], axes: tuple[float, float], degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The line one pixel wide, and the inside from the formula of the ellipse."""
    line = np.zeros((HEIGHT, WIDTH), np.uint8)
    t = np.radians(degrees)
    for angle in np.linspace(0, 2 * np.pi, 4000):
        p, q = axes[0] * math.cos(angle), axes[1] * math.sin(angle)
        x, y = centre[0] + p * math.cos(t) - q * math.sin(t), centre[1] + p * math.sin(t) + q * math.cos(t)
        if 0 <= round(x) < WIDTH and 0 <= round(y) < HEIGHT:
            line[round(y), round(x)] = 255
    dx, dy = np.meshgrid(np.arange(WIDTH) - centre[0], np.arange(HEIGHT) - centre[1])
    u, v = dx * math.cos(t) + dy * math.sin(t), dy * math.cos(t) - dx * math.sin(t)
    return line, (u / axes[0]) ** 2 + (v / axes[1]) ** 2 <= 1


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


WHOLE = ((80.0, 60.0), (55.0, 40.0), 20.0)


@pytest.mark.parametrize(
    "shape",
    [
        WHOLE,
        ((20.0, 60.0), (50.0, 35.0), 0.0),  # leaves the picture at the left
        ((20.0, 15.0), (60.0, 40.0), 30.0),  # at a corner
        ((80.0, 60.0), (70.0, 75.0), 0.0),  # at top and bottom
        ((80.0, 60.0), (5.0, 4.0), 0.0),
    ],
    ids=["whole", "border", "corner", "two borders", "small"],
)
def test_the_head_is_what_lies_within_the_line(shape):
    line, inside = ellipse(*shape)
    head = fill_outline(line, "x")
    assert head[line > 0].all()
    # Of the small one the line itself, half of which lies outside of the formula, is a third.
    assert overlap(head, inside) > (0.97 if inside.sum() > 1000 else 0.75)


def test_a_head_that_is_no_ellipse_is_followed():
    angle = np.linspace(0, 2 * np.pi, 400)
    egg = 80 + (40 + 6 * np.cos(angle)) * np.cos(angle), 60 + 34 * np.sin(angle)
    line = np.zeros((HEIGHT, WIDTH), np.uint8)
    points = np.rint(np.stack(egg, axis=1)).astype(np.int32)
    cv2.polylines(line, [points], isClosed=True, color=255, lineType=cv2.LINE_8)
    expected = cv2.fillPoly(np.zeros_like(line), [points], 1)
    np.testing.assert_array_equal(fill_outline(line, "x"), expected != 0)


def test_a_line_with_a_gap_is_an_ellipse():
    line, inside = ellipse(*WHOLE)
    line[:, 78:84] = 0
    assert overlap(fill_outline(line, "x"), inside) > 0.97


def test_a_head_that_is_filled_already_stays():
    _, inside = ellipse(*WHOLE)
    np.testing.assert_array_equal(fill_outline(inside.astype(np.uint8), "x"), inside)


@pytest.mark.parametrize("points", [[], [(5, 5)], [(5, 5), (6, 6), (7, 7)], [(5, x) for x in range(5, 60)]])
def test_what_is_no_outline(points):
    line = np.zeros((HEIGHT, WIDTH), np.uint8)
    for row, column in points:
        line[row, column] = 255
    with pytest.raises(InputError, match="x has no outline of a head"):
        fill_outline(line, "x")


def write(folder: Path, rows: dict[str, str], *, skip: tuple[str, ...] = ()) -> Path:
    """Write HC18 with a row for each file name; the same head in each."""
    (folder / FOLDER).mkdir(parents=True)
    (folder / CSV_NAME).write_text("\n".join([HEADER, *(f"{name},{rest}" for name, rest in rows.items())]) + "\n")
    for name in rows:
        outline = name.replace(".png", "_Annotation.png")
        for file, image in ((name, np.resize(speckle(name), (HEIGHT, WIDTH))), (outline, ellipse(*WHOLE)[0])):
            if file not in skip:
                cv2.imwrite(str(folder / FOLDER / file), image)
    return folder


ROWS = {
    "010_HC.png": "0.25,180.5",
    "010_2HC.png": "0.25,181",
    **{f"{number:03d}_HC.png": "0.3,200" for number in range(11, 40)},
}


def test_prepared_records(tmp_path):
    source = write(tmp_path / "hc18", {**ROWS, "024_3HC.png": ",nan"})
    records = decoded_records(Hc18(source=source, data_dir=tmp_path / "out"))
    assert set(records) == {"train", "val", "test"}
    split_of = {row["frame_id"].decode(): split for split, rows in records.items() for row in rows}
    assert set(split_of) == {name.removesuffix(".png") for name in ROWS} | {"024_3HC"}
    assert split_of["010_HC"] == split_of["010_2HC"] == draw_split("010")
    rows = {row["frame_id"].decode(): row for of in records.values() for row in of}
    assert rows["010_2HC"]["patient_id"] == rows["010_2HC"]["scan_id"] == b"010"
    assert (rows["010_2HC"]["pixel_mm"], rows["010_2HC"]["hc_mm"]) == (0.25, 181)
    assert np.isnan([rows["024_3HC"]["pixel_mm"], rows["024_3HC"]["hc_mm"]]).all()
    np.testing.assert_array_equal(rows["010_2HC"]["mask"][..., 0], fill_outline(ellipse(*WHOLE)[0], "x"))
    metadata = json.loads((tmp_path / "out/hc18/1.0.0/metadata.json").read_text())
    assert metadata["unknown_size"] == ["024_3HC"]
    index = ScanIndex.from_dataset(tmp_path / "out")
    assert len(index) == 32
    assert len(index.patient_names) == 30


def test_studies_are_one_however_they_are_written(tmp_path):
    source = write(tmp_path / "hc18", {"24_HC.png": "0.2,170", "024_2HC.png": "0.2,171"})
    found, _ = Hc18(source=source, data_dir=tmp_path / "out").find(source)
    assert [frame.frame_id for frame in found] == ["024_2HC", "024_HC"]
    assert {frame.patient_id for frame in found} == {"024"}
    cv2.imwrite(str(source / FOLDER / "0024_HC.png"), speckle("x"))
    with pytest.raises(InputError, match=r"24_HC.png and 0024_HC.png have the name of the same frame"):
        Hc18(source=source, data_dir=tmp_path / "out").find(source)


def test_the_split_of_a_study_does_not_depend_on_others():
    splits = [draw_split(f"{study:03d}") for study in range(806)]
    shares = {split: splits.count(split) / 806 for split in ("train", "val", "test")}
    assert shares == pytest.approx({"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.04)
    # Taken once: another split would make old and new results incomparable.
    assert splits[:12] == FIRST_SPLITS


FIRST_SPLITS = [
    "test", "train", "test", "test", "train", "train", "train", "test", "test", "train", "train", "test",
]  # fmt: skip


def test_a_split_by_file_is_refused(prepare_frames):
    # The way of a random split over files, as is often published for HC18.
    files = {"train": ["010_HC", "011_HC"], "test": ["010_2HC", "012_HC"]}
    path = prepare_frames(
        **{split: [frame_record(name, study_of(name)) for name in names] for split, names in files.items()}
    )
    with pytest.raises(InputError, match=r"1 patient\(s\) in several splits, the first is '010' in train and test"):
        ScanIndex.from_dataset(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"010_HC.png": "x,180"}, "line 2: pixel size.mm. must be a number; got 'x'"),
        ({"010_HC.png": "0,180"}, "pixel size.mm. must be a length above 0; got '0'"),
        ({"010_HC.png": "0.2,-3"}, "head circumference .mm. must be a length above 0"),
        ({"010.png": "0.2,180"}, "filename must be like 010_2HC.png; got '010.png'"),
        ({"010_HC.png": "0.2,180", "10_HC.png": "0.2,180"}, "lists the image 010_HC again"),
        ({}, "lists no frames"),
    ],
)
def test_a_csv_that_is_refused(tmp_path, rows, message):
    source = write(tmp_path / "hc18", rows)
    with pytest.raises(InputError, match=message):
        Hc18(source=source, data_dir=tmp_path / "out").find(source)


def test_a_frame_without_its_outline(tmp_path):
    source = write(tmp_path / "hc18", ROWS, skip=("012_HC_Annotation.png", "013_HC.png"))
    with pytest.raises(InputError, match=r"of 2 frame\(s\), the first 012_HC.png. Use --skip_missing"):
        Hc18(source=source, data_dir=tmp_path / "out").download_and_prepare()
    records = decoded_records(Hc18(source=source, data_dir=tmp_path / "out", skip_missing=True))
    assert sum(map(len, records.values())) == len(ROWS) - 2


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        (np.zeros((HEIGHT, WIDTH), np.uint8), "012_HC_Annotation.png has no outline"),
        (np.zeros((HEIGHT, WIDTH - 1), np.uint8), "as many pixels as its image, 160 x 120; got 159 x 120"),
    ],
)
def test_an_outline_that_does_not_fit(tmp_path, outline, message):
    source = write(tmp_path / "hc18", ROWS)
    cv2.imwrite(str(source / FOLDER / "012_HC_Annotation.png"), outline)
    with pytest.raises(InputError, match=f"{message}.*--skip_broken"):
        Hc18(source=source, data_dir=tmp_path / "out").download_and_prepare()
    records = decoded_records(Hc18(source=source, data_dir=tmp_path / "out", skip_broken=True))
    assert sum(map(len, records.values())) == len(ROWS) - 1


@pytest.mark.slow
def test_real_heads_measure_what_was_published(real_data, tmp_path):
    builder = Hc18(source=real_data / "HC18", data_dir=tmp_path)
    builder.download_and_prepare()
    index = ScanIndex.from_dataset(builder.data_dir)
    # Counted with ls, sed and sort.
    assert (len(index), len(index.patient_names)) == (778, 638)
    with (real_data / "HC18" / CSV_NAME).open(newline="") as file:
        published = {row["filename"]: float(row["head circumference (mm)"]) for row in csv.DictReader(file)}
    frames, size = np.arange(0, len(index), 13), 256
    reader = FrameReader(index, size=size)
    for frame, mask, (mm_y, mm_x), told in zip(
        frames, reader.read_masks(frames), reader.pixel_sizes(frames), reader.measures("hc_mm", frames), strict=True
    ):
        expected = published[f"{index.frame_ids[frame]}.png"]
        assert told == pytest.approx(expected)
        if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
            continue
        # The ellipse through the middle of the outermost pixels, in millimetres, which differ by axis.
        (contour,), _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        points = (contour[:, 0] * (mm_x, mm_y)).astype(np.float32)
        _, (w, h), _ = cv2.fitEllipse(points)
        a, b = w / 2, h / 2
        around = math.pi * (3 * (a + b) - math.sqrt((3 * a + b) * (a + 3 * b)))
        assert around == pytest.approx(expected, rel=0.02), index.frame_ids[frame]
