"""Regions that are tried in order give each file what its first region that works would give alone."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from awcl_jax.data.private_table import read_private_table
from awcl_jax.data.records import Records
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest import command as ingest
from awcl_jax.ingest.own import chunks
from awcl_jax.ingest.own.chunks import Outcome, kept_frames
from awcl_jax.ingest.own.items import Clip, Picture, Reading
from awcl_jax.ingest.own.region import steps_of
from awcl_jax.ingest.own.removed import show_removed
from tests.helpers.own_files import write_dicom

SIZE = (240, 320)
TEXT_ROWS = 20


def frames(count: int, seed: int) -> list[np.ndarray]:
    """Frames of a fan that moves, below writing that does not."""
    rows, columns = np.indices(SIZE)
    x, z = columns - 160, rows + 40
    fan = (np.abs(np.arctan2(x, z)) < 0.5) & (np.hypot(x, z) < 260) & (rows > 20)
    rng = np.random.default_rng(seed)
    drawn = [np.where(fan, 60 + cv2.GaussianBlur(rng.normal(0, 300, SIZE), (0, 0), 3), 0) for _ in range(count)]
    drawn = [np.clip(frame, 0, 255).astype(np.uint8) for frame in drawn]
    for frame in drawn:
        cv2.putText(frame, "NAME, GIVEN", (4, 14), cv2.FONT_HERSHEY_PLAIN, 1, 255)
    return drawn


@pytest.fixture
def mixed(tmp_path, monkeypatch) -> Path:
    """A clip and a frame with a tag, a clip and a frame without: 0 to 3."""
    monkeypatch.setenv("AWCL_ID_KEY", "a key that is long enough")
    for number, (count, region) in enumerate(
        [(12, (20, 21, 300, 230)), (1, (20, 21, 300, 230)), (12, None), (1, None)]
    ):
        clip = frames(count, number)
        write_dicom(tmp_path / f"in/{number}.dcm", clip, patient=f"p{number}", study=f"1.{number}", region=region)
    return tmp_path / "in"


def run(capsys, source: Path, out: Path, region: str, *args: object) -> tuple[dict[int, dict[int, np.ndarray]], str]:
    """File -> number of a frame -> its stored picture; and what was printed."""
    flags = (f"--source={source}", f"--out={out}", f"--region={region}", "--every=4", "--skip_bad", "--keep_paths")
    ingest.main(["dicom", *flags, "--val_share=0", "--workers=1", *map(str, args)])
    index, found = ScanIndex.from_dataset(out), {}
    records = Records(index.path)
    read = [records.read(split, at) for split in records.splits for at in range(records.count(split))]
    pictures = {r["frame_id"].decode(): cv2.imdecode(np.frombuffer(r["image"], np.uint8), 0) for r in read}
    for row in read_private_table(index.path).to_pylist():
        found.setdefault(int(Path(row["path"]).stem), {})[row["frame"]] = pictures[row["frame_id"]]
    return found, "".join(capsys.readouterr())


def test_each_file_has_the_first_region_that_works(mixed, tmp_path, capsys):
    found, said = run(capsys, mixed, tmp_path / "all", "tag,sector,frame")
    alone = {region: run(capsys, mixed, tmp_path / region, region)[0] for region in ("tag", "sector", "frame")}
    assert {number: sorted(of) for number, of in found.items()} == {0: [0, 4, 8], 1: [0], 2: [0, 4, 8], 3: [0]}
    for number, region in ((0, "tag"), (1, "tag"), (2, "sector"), (3, "frame")):
        for frame, picture in found[number].items():
            np.testing.assert_array_equal(picture, alone[region][number][frame])
            assert picture.shape[0] < SIZE[0] - TEXT_ROWS, "writing is cut away"
            assert picture[40:160].std() > 10, "echoes are kept"
    assert sorted(alone["tag"]) == [0, 1]
    assert 3 not in alone["sector"]
    assert "--region: sector instead of tag for 2 file(s), such as file 3, id " in said
    assert "--region: frame instead of sector for 1 file(s), such as file 4, id " in said
    report = json.loads((tmp_path / "all/ingest_report.json").read_text())
    tried = [(fall["region"], fall["then"], fall["numbers"]) for fall in report["regions_tried"]]
    assert tried == [("sector", "frame", [4]), ("tag", "sector", [3, 4])]


def test_the_last_may_be_a_rectangle_or_all(mixed, tmp_path, capsys):
    found, _ = run(capsys, mixed, tmp_path / "rectangle", "tag,100,50,200,150")
    for number, picture in found[2].items():
        np.testing.assert_array_equal(picture, frames(12, 2)[number][50:150, 100:200])
    found, _ = run(capsys, mixed, tmp_path / "whole", "tag,whole")
    np.testing.assert_array_equal(found[3][0], frames(1, 3)[0])
    assert found[1][0].shape[0] < SIZE[0] - TEXT_ROWS


def test_a_rectangle_of_the_table_goes_first(mixed, tmp_path, capsys):
    (tmp_path / "t.csv").write_text('path,region\n1.dcm,"100,50,200,150"\n3.dcm,100 60 200 150\n2.dcm,\n')
    found, _ = run(capsys, mixed, tmp_path / "out", "tag,sector", f"--labels={tmp_path / 't.csv'}")
    for number, top in ((1, 50), (3, 60)):
        np.testing.assert_array_equal(found[number][0], frames(1, number)[0][top:150, 100:200])
    assert sorted(found) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("region", "status", "message"),
    [
        ("tag,whole,sector", 1, "has a part that is never tried"),
        ("tag,tag", 1, "has a part that is never tried"),
        ("1,2,3,4,tag", 2, "with X0,Y0,X1,Y1 last"),
        ("tag,1,2,3", 2, "with X0,Y0,X1,Y1 last"),
        ("tag,3,2,1,4", 2, "must have X0 < X1"),
        ("", 2, "must be of tag, sector, frame, whole"),
    ],
)
def test_orders_that_make_no_sense(mixed, tmp_path, capsys, region, status, message):
    with pytest.raises(SystemExit) as left:
        ingest.main(["dicom", f"--source={mixed}", f"--out={tmp_path / 'out'}", f"--region={region}"])
    assert left.value.code == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def lifted(at: int, seed: int = 0) -> list[np.ndarray]:
    """A clip with a frame of a lifted probe, with echoes near its face alone and so without a sector."""
    clip = frames(13, seed)
    clip[at][TEXT_ROWS + 20 :] = 0
    return clip


@pytest.mark.parametrize(("region", "tagged"), [("tag", "whole"), ("frame", None), ("tag,frame", None)])
def test_writing_does_not_come_back_when_the_probe_is_lifted(tmp_path, monkeypatch, capsys, region, tagged):
    monkeypatch.setenv("AWCL_ID_KEY", "a key that is long enough")
    for number in range(2):
        clip = lifted(12, number)
        write_dicom(tmp_path / f"in/{number}.dcm", clip, patient=f"p{number}", study=f"1.{number}", region=tagged)
    found, said = run(capsys, tmp_path / "in", tmp_path / "out", region, "--near_duplicate=0")
    assert sorted(found[0]) == [0, 4, 8, 12]
    for pictures in found.values():
        assert all(picture.shape[0] < SIZE[0] - TEXT_ROWS for picture in pictures.values()), "writing is cut away"
        assert pictures[12].shape == pictures[8].shape, "cut to the sector of the frame before it"
    assert "Cut 8 frame(s)" in said


def test_a_clip_that_begins_with_a_lifted_probe_has_the_first_sector(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AWCL_ID_KEY", "a key that is long enough")
    write_dicom(tmp_path / "in/0.dcm", lifted(0))
    write_dicom(tmp_path / "in/1.dcm", lifted(0, seed=1)[:1], patient="p2", study="1.2")
    found, said = run(capsys, tmp_path / "in", tmp_path / "out", "tag", "--test_share=0", "--near_duplicate=0")
    assert found[0][0].shape == found[0][4].shape
    np.testing.assert_array_equal(found[1][0], lifted(0, seed=1)[0])  # no frame of that file shows a sector
    assert "Cut 4 frame(s)" in said, "and it is not among those that are cut"


def test_a_frame_with_the_sector_of_another_is_drawn_among_what_was_removed(tmp_path, monkeypatch, capsys):
    clip = Clip(frames=lambda: iter(map(Picture, lifted(12))))
    found = list(kept_frames(clip, "frame", Reading(near_duplicate=0), Outcome(0)))
    assert [frame.borrowed for frame in found] == [False] * 12 + [True]
    monkeypatch.setenv("AWCL_ID_KEY", "a key that is long enough")
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(chunks, "show_removed", lambda *pictures: drawn.append(pictures[0]) or show_removed(*pictures))
    write_dicom(tmp_path / "in/0.dcm", lifted(12))
    run(capsys, tmp_path / "in", tmp_path / "out", "tag", "--test_share=0", "--near_duplicate=0")
    np.testing.assert_array_equal(drawn, [lifted(12)[0], lifted(12)[12]])


def test_steps():
    assert steps_of("tag,sector,1,2,3,4") == ("tag", "sector", (1, 2, 3, 4))
    assert steps_of((1, 2, 3, 4)) == ((1, 2, 3, 4),)
    assert steps_of("whole") == ("whole",)


@pytest.mark.parametrize("cell", ["1 2 3", "a b c d", "5 2 5 9", "1 9 5 2", "-1 0 5 5"])
def test_cells_that_are_no_rectangle(tmp_path, capsys, cell):
    cv2.imwrite(str(tmp_path / "a.png"), frames(1, 0)[0])
    (tmp_path / "t.csv").write_text(f"path,scan_id,region\na.png,s,{cell}\n")
    with pytest.raises(SystemExit):
        ingest.main(["manifest", f"--source={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}", "--test_share=0"])
    assert "region must be x0 y0 x1 y1 in pixels" in capsys.readouterr().err
