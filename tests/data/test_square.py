"""Frames made square: what is where, on which scale, and who says how."""

import json

import cv2
import numpy as np
import pytest

from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.square import LETTERBOX, SQUASH, Square, aspect_of, fitted, resize_frame, resize_mask
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import frame_record, speckle

pytestmark = pytest.mark.quick


def record(path, aspect):
    """Note an aspect in a dataset's metadata, as an ingest does."""
    (path / "metadata.json").write_text(json.dumps({"aspect": aspect}))
    return ScanIndex.from_dataset(path)


def test_a_letterbox_has_bars_above_and_below_or_beside():
    wide = np.arange(1, 9, dtype=np.uint8).reshape(2, 4)
    bars = np.zeros((1, 4), np.uint8)
    np.testing.assert_array_equal(resize_frame(wide, 4, aspect=LETTERBOX), np.concatenate([bars, wide, bars]))
    np.testing.assert_array_equal(resize_frame(wide.T, 4, aspect=LETTERBOX), np.concatenate([bars, wide, bars]).T)
    # Of an odd number of rows, the one more is below.
    three = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(resize_frame(three, 4, aspect=LETTERBOX), np.concatenate([three, bars]))


def test_a_letterbox_averages_where_it_shrinks():
    frame = np.random.default_rng(0).integers(0, 256, (32, 64), np.uint8)
    square = resize_frame(frame, 16, aspect=LETTERBOX)
    means = frame.astype(float).reshape(8, 4, 16, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(square[4:12], means, atol=0.51)
    assert not square[:4].any()
    assert not square[12:].any()


@pytest.mark.parametrize("shape", [(48, 48), (10, 90), (90, 10), (1, 300), (31, 40)])
@pytest.mark.parametrize("size", [7, 32, 96])
def test_squash_fills_the_square_and_square_frames_are_alike(shape, size):
    frame = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    how = cv2.INTER_AREA if size <= min(shape) else cv2.INTER_LINEAR
    expected = cv2.resize(frame, (size, size), interpolation=how)
    np.testing.assert_array_equal(resize_frame(frame, size), expected)
    letterboxed = resize_frame(frame, size, aspect=LETTERBOX)
    assert letterboxed.shape == (size, size)
    assert (shape[0] != shape[1]) or (letterboxed == expected).all()
    height, width = fitted(shape, size, LETTERBOX)
    assert max(height, width) == size
    if min(height, width) > 1:  # the aspect ratio to half a pixel
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.5 / min(height, width) + 1e-9)


@pytest.mark.parametrize("aspect", [SQUASH, LETTERBOX])
@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (30, 51)])
def test_masks_are_where_their_frames_are(shape, aspect):
    rows, columns = np.indices(shape)
    mask = ((rows // 8 + columns // 8) % 2).astype(np.uint8)
    frame = resize_frame(mask * 200, 32, aspect=aspect).astype(int)
    moved = resize_mask(mask, 32, aspect=aspect)
    # Where the frame is clearly of one class.
    assert (moved[frame > 190] == 1).all()
    height, width = fitted(shape, 32, aspect)
    top, left = (32 - height) // 2, (32 - width) // 2
    inside = np.zeros((32, 32), bool)
    inside[top : top + height, left : left + width] = True
    assert (moved[inside & (frame < 10)] == 0).all()
    assert not moved[~inside].any()


def test_a_dataset_says_how_and_the_caller_can_say_otherwise(prepare_frames):
    path = prepare_frames(masks=True, train=[frame_record("x", mask=(speckle("x") > 127).astype(np.uint8))])
    assert aspect_of(path) == SQUASH
    assert FrameReader(ScanIndex.from_dataset(path), 8).aspect == SQUASH
    index = record(path, LETTERBOX)
    one = np.array([0])
    np.testing.assert_array_equal(FrameReader(index, 8).read(one)[0], resize_frame(speckle("x"), 8, aspect=LETTERBOX))
    mask = (speckle("x") > 127).astype(np.uint8)
    np.testing.assert_array_equal(FrameReader(index, 8).read_masks(one)[0], resize_mask(mask, 8, aspect=LETTERBOX))
    np.testing.assert_array_equal(FrameReader(index, 8, aspect=SQUASH).read(one)[0], Square(8).of(speckle("x")))
    # 32 x 40 pixels of 0.5 mm become 6 x 8: 16 mm / 6 high, 20 mm / 8 wide.
    np.testing.assert_allclose(FrameReader(index, 8).pixel_sizes(one), [[16 / 6, 2.5]])


@pytest.mark.parametrize("aspect", ["stretch", 3, ["squash"]])
def test_an_unknown_aspect_is_bad_input(prepare_frames, aspect):
    path = prepare_frames(train=[frame_record("x")])
    index = record(path, aspect)
    with pytest.raises(InputError, match=r"aspect in .*metadata\.json must be letterbox or squash; got"):
        FrameReader(index, 8)
