"""Small pixels as features, the baseline without an encoder."""

import cv2
import numpy as np
import pytest

from awcl_jax.data.reader import FrameReader
from awcl_jax.evaluate import frozen

pytestmark = pytest.mark.quick


class Reader(FrameReader):
    """Frames whose greys are their numbers, and how many were asked for at a time."""

    def __init__(self):
        self.asked = []

    def read(self, frames):
        self.asked.append(frames.size)
        rng = np.random.default_rng(0)
        return (rng.integers(0, 99, (1, 50, 50)) + frames[:, None, None] % 100).astype(np.uint8)


def test_frames_are_read_a_few_at_a_time_and_stay_in_order():
    reader, frames = Reader(), np.arange(600)[::-1].copy()
    found = frozen.downsampled_pixels(reader, frames)
    assert (max(reader.asked), sum(reader.asked)) == (256, 600)
    image = Reader().read(frames[599:])[0]
    np.testing.assert_array_equal(
        found[599], cv2.resize(image, (24, 24), interpolation=cv2.INTER_AREA).ravel() / np.float32(255)
    )
    assert found.dtype == np.float32
    assert frozen.downsampled_pixels(Reader(), frames[:0]).shape == (0, 576)
