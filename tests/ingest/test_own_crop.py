"""Frames are cut to the part that is kept, with their masks, and a dataset records how they become square."""

import cv2
import numpy as np
import pytest

from awcl_jax.data.fan import Fan
from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.square import LETTERBOX, SQUASH, resize_frame, resize_mask
from awcl_jax.ingest import command as ingest
from awcl_jax.ingest.own import command as own
from awcl_jax.ingest.own.chunks import Outcome, kept_frames
from awcl_jax.ingest.own.items import Clip, Picture, Reading
from awcl_jax.ingest.own.region import Kept, box_of, fans_in
from tests.helpers.frames import speckle

BOX = (6, 4, 38, 20)  # x0, y0, x1, y1 of the 40 x 32 pixels


def prepare(folder, *flags, out="out"):
    lines = ["path,scan_id,mask,pixel_mm"]
    for number in range(6) if not (folder / "scans.csv").exists() else ():
        cv2.imwrite(str(folder / f"{number}.png"), speckle(str(number)))
        cv2.imwrite(str(folder / f"m{number}.png"), (speckle(str(number)) > 120).astype(np.uint8))
        lines.append(f"{number}.png,s{number},m{number}.png,0.5")
    if len(lines) > 1:  # once: an ingest compares the times of files
        (folder / "scans.csv").write_text("\n".join(lines) + "\n")
    arguments = ["manifest", f"--source={folder / 'scans.csv'}", "--mask_names=other,bright", "--keep_ids"]
    ingest.main([*arguments, f"--out={folder / out}", "--workers=1", f"--region={','.join(map(str, BOX))}", *flags])
    return ScanIndex.from_dataset(folder / out)


@pytest.mark.parametrize("aspect", [LETTERBOX, SQUASH])
def test_frames_and_masks_are_cut_alike_and_keep_their_millimetres(tmp_path, aspect):
    index = prepare(tmp_path, *([] if aspect == LETTERBOX else ["--aspect=squash"]))
    reader = FrameReader(index, 16)
    assert reader.aspect == aspect
    frames = np.arange(len(index))
    for frame, image, mask in zip(frames, reader.read(frames), reader.read_masks(frames), strict=True):
        drawn = speckle(index.scan_names[index.scans[frame]][1:])[4:20, 6:38]
        np.testing.assert_array_equal(image, resize_frame(drawn, 16, aspect=aspect))
        np.testing.assert_array_equal(mask, resize_mask((drawn > 120).astype(np.uint8), 16, aspect=aspect))
    # 16 x 32 pixels of 0.5 mm are 8 x 16 mm: in a letterbox 8 x 16 pixels of 1 mm.
    expected = [1.0, 1.0] if aspect == LETTERBOX else [0.5, 1.0]
    np.testing.assert_allclose(reader.pixel_sizes(frames), np.tile(expected, (6, 1)))


def test_a_dataset_from_before_keeps_its_frames(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(own, "_is_from_before", lambda _, setting: setting == "aspect")
        before = prepare(tmp_path)
    images = FrameReader(before, 32).read(np.arange(6))
    for image, scan in zip(images, before.scans, strict=True):
        drawn = np.zeros((32, 40), np.uint8)
        drawn[4:20, 6:38] = speckle(before.scan_names[scan][1:])[4:20, 6:38]
        np.testing.assert_array_equal(image, resize_frame(drawn, 32))
    capsys.readouterr()
    after = prepare(tmp_path)
    assert "is already prepared: nothing to do" in capsys.readouterr().out
    np.testing.assert_array_equal(FrameReader(after, 32).read(np.arange(6)), images)
    with pytest.raises(SystemExit):
        prepare(tmp_path, "--aspect=letterbox")
    assert "aspect was None and is now letterbox" in capsys.readouterr().err


def test_other_aspects_of_a_dataset_are_refused(tmp_path, capsys):
    prepare(tmp_path)
    with pytest.raises(SystemExit):
        prepare(tmp_path, "--aspect=squash")
    assert "aspect was letterbox and is now squash. Choose another --out" in capsys.readouterr().err


def test_the_box_is_the_smallest_around_a_part():
    part = np.zeros((9, 12), bool)
    part[3, 2] = part[6, 7] = part[4, 10] = True
    assert box_of(part) == (slice(3, 7), slice(2, 11))
    assert box_of(None) == (slice(None), slice(None))
    fan = Fan(100.0, -20.5, -30.0, 30.0, 40.0, 250.0)
    kept = Kept(part, fans=(fan, None))
    assert fans_in(kept, box_of(part)) == (fan._replace(apex_x=98.0, apex_y=-23.5), None)
    assert fans_in(kept, box_of(None)) == (fan, None)


def test_a_frame_with_one_value_in_its_box_is_blank():
    frame = np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8)
    frame[5:9, 5:9] = 70
    clip = Clip(frames=lambda: iter([Picture(frame)]))
    outcome = Outcome(start=0)
    assert not list(kept_frames(clip, (5, 5, 9, 9), Reading(crop=True), outcome))
    assert outcome.blank == 1
