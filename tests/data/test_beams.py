"""Which fan each frame has, and where it lies in the square."""

import json
import math
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.augment.beams import polar
from awcl_jax.data.beams import FANS_OF_FRAMES, UNKNOWN, fans_of, in_square
from awcl_jax.data.fan import Fan
from awcl_jax.data.reader import FrameReader, JoinedReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.square import ASPECTS, LETTERBOX, resize_frame
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import frame_record

pytestmark = pytest.mark.quick

A = Fan(20.0, -10.0, -30.0, 30.0, None, 60.0)
B = Fan(15.0, -5.5, -40.0, 20.0, 12.0, None)


def note(path: Path, runs: object, aspect: str = LETTERBOX) -> ScanIndex:
    """Write the fans of a dataset's frames into its metadata, as an ingest does."""
    (path / "metadata.json").write_text(json.dumps({FANS_OF_FRAMES: runs, "aspect": aspect}))
    return ScanIndex.from_dataset(path)


@pytest.fixture
def frames(prepare_frames) -> Path:
    """Three scans, of patients p, q and r; the third frame of p is larger than the others."""
    large = np.random.default_rng(0).integers(0, 256, (64, 50), np.uint8)
    train = [frame_record(name, "p") for name in ("p0", "p1")] + [frame_record("p2", "p", image=large)]
    train += [frame_record(name, "q") for name in ("q0", "q1")]
    return prepare_frames(train=train, test=[frame_record("r0", "r")])


RUNS = {"p-s": [(2, A), (1, B)], "q-s": [(1, None), (1, A)]}


def test_frames_have_the_fans_of_their_clips(frames):
    index = note(frames, RUNS)
    fans, which = fans_of(index)
    assert [None if one < 0 else fans[one] for one in which.tolist()] == [A, A, B, None, A, None]
    # In another order, and without whole scans, which patients held out leave.
    part = index.take(np.array([4, 2, 1, 3, 0]))
    fans, which = fans_of(part)
    assert [None if one < 0 else fans[one] for one in which.tolist()] == [A, B, A, None, A]
    fans, which = fans_of(index.take(np.array([3, 4])))
    assert (fans, which.tolist()) == ((A,), [-1, 0])


def test_frames_beside_one_that_was_left_out_keep_their_fan_only_if_it_is_certain(frames):
    index = note(frames, RUNS)
    assert fans_of(index.take(np.array([0, 2])))[1].tolist() == [-1, -1]
    index = note(frames, {"p-s": [(3, A)]})
    assert fans_of(index.take(np.array([0, 2])))[1].tolist() == [0, 0]


def test_a_dataset_of_an_earlier_version_has_no_fans(frames):
    index = ScanIndex.from_dataset(frames)
    assert fans_of(index)[0] == ()
    with pytest.raises(
        InputError, match=r"beams=fan needs the fans.*has none\. Prepare.*--region=sector.*=fixed"
    ) as error:
        FrameReader(index, 16).require_fans()
    assert "\n" not in str(error.value)
    FrameReader(note(frames, RUNS), 16).require_fans()


@pytest.mark.parametrize(
    "runs",
    [
        [1, 2],
        {"p-s": 3},
        {"p-s": [[1]]},
        {"p-s": [[1, [0, 1]]]},
        {"p-s": [[1, ["a", 1, 2, 3, None, None]]]},
        {"p-s": [[3, [20, -10, 30, -30, None, None]]]},
    ],
)
def test_damaged_fans_are_refused(frames, runs):
    with pytest.raises(InputError, match=r"fans_of_frames in .*metadata\.json are damaged\. Prepare"):
        fans_of(note(frames, runs))


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("shape", [(120, 200), (200, 120), (160, 160)])
def test_points_of_a_frame_keep_their_radius_and_beam_in_the_square(shape, aspect):
    fan = Fan(70.0, -25.0, -50.0, 50.0, None, None)
    six = in_square(fan, shape, 64, aspect)
    for row, column in ((30, 50), (100, 90), (110, 20)):
        frame = np.zeros(shape, np.uint8)
        cv2.circle(frame, (column, row), 5, 255, -1)
        square = resize_frame(frame, 64, aspect=aspect).astype(float)
        # Pixels of the square from its corner, as a view counts them.
        y, x = ((np.indices(square.shape) + 0.5) * square).sum((1, 2)) / square.sum()
        radius, beam = polar(jnp.float32(y), jnp.float32(x), jnp.asarray(six))
        angle = math.degrees(math.atan2(column - 70, row + 25))
        assert float(radius) == pytest.approx(math.hypot(column - 70, row + 25), abs=0.3)
        assert 100 * float(beam) - 50 == pytest.approx(angle, abs=0.2)


def test_a_reader_gives_the_fans_of_frames_in_their_squares(frames):
    reader = FrameReader(note(frames, RUNS), 24)
    expected = [in_square(A, (32, 40), 24, LETTERBOX)] * 2 + [in_square(B, (64, 50), 24, LETTERBOX)]
    expected += [UNKNOWN, expected[0], UNKNOWN]
    np.testing.assert_array_equal(reader.fans(np.arange(6)), expected)
    np.testing.assert_array_equal(reader.fans(np.array([5, 2])), [expected[5], expected[2]])
    assert reader.fans(np.array([0])).dtype == np.float32
    assert reader.fans(np.zeros(0, int)).shape == (0, 6)


def test_a_joined_reader_gives_the_fans_of_each_dataset(frames, prepare_frames):
    other = prepare_frames("others", train=[frame_record("o0", "o"), frame_record("o1", "o")])
    index = note(other, {"o-s": [(1, B), (1, None)]}, aspect="squash")
    bare = ScanIndex.from_dataset(frames).split("train")
    (frames / "metadata.json").write_text(json.dumps({"aspect": LETTERBOX}))
    joined = JoinedReader(bare, [index.split("train")], 24)
    joined.require_fans()
    fans = joined.fans(np.arange(len(joined.index)))
    np.testing.assert_array_equal(fans[:5], np.zeros((5, 6)))
    np.testing.assert_array_equal(fans[5:], [in_square(B, (32, 40), 24, LETTERBOX), UNKNOWN])
