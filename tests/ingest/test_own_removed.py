"""The picture of what was removed: where, how bright, and that it cannot be read."""

import cv2
import numpy as np
import pytest

from awcl_jax.ingest.own.contact_sheet import write_removed_sheet
from awcl_jax.ingest.own.removed import SIZE, show_removed


def test_what_was_removed_is_red_and_what_was_kept_is_grey():
    frame = np.full((320, 320), 100, np.uint8)
    kept = frame.copy()
    kept[:, 160:] = 0
    drawn = show_removed(frame, kept)
    np.testing.assert_array_equal(drawn[:, :80], 100)
    assert (drawn[:, 80:, 0] > 100).all()
    assert not drawn[:, 80:, 1:].any()


def test_brighter_means_that_more_was_removed():
    frame = np.zeros((320, 320), np.uint8)
    frame[:, :160], frame[:, 160:] = 5, 80
    red = show_removed(frame, np.zeros_like(frame))[..., 0]
    assert red[:, 80:].min() > red[:, :80].max() > 0


def test_what_was_black_is_not_red():
    frame = np.zeros((200, 300), np.uint8)
    frame[50:150, 100:200] = 90
    assert show_removed(frame, frame)[SIZE // 2, 0].tolist() == [0, 0, 0]


def test_writing_is_seen_and_cannot_be_read():
    tiles = []
    for name in ("MUSTERMANN", "MUELLERIN "):
        frame = np.zeros((480, 640), np.uint8)
        cv2.putText(frame, name, (20, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255)
        tiles.append(show_removed(frame, np.zeros_like(frame)))
    assert tiles[0][..., 0].max() > 70
    # 640 pixels in 32 blocks of 20, which are larger than a letter of 10: each has one colour.
    blocks = tiles[0][20:140].reshape(24, 5, 32, 5, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2)])
def test_the_smallest_pictures(size):
    frame = np.full(size, 9, np.uint8)
    assert show_removed(frame, np.zeros_like(frame)).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("count", [1, 200])
def test_a_sheet_of_few_and_of_many(tmp_path, count):
    examples = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    examples[..., 0] = 200
    write_removed_sheet(examples, tmp_path / "removed.png")
    picture = cv2.imread(str(tmp_path / "removed.png"))
    red = (picture == [0, 0, 200]).all(axis=-1).mean()
    assert red > (0.04 if count == 1 else 0.6)
