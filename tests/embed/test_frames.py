"""Frames of a program: what is taken, and what is refused because it could be wrong without notice."""

import numpy as np
import pytest

from awcl_jax.embed.frames import as_grey, require_colours
from awcl_jax.runtime.errors import InputError

pytestmark = pytest.mark.quick

GREY = np.random.default_rng(0).integers(0, 256, (2, 6, 8), np.uint8)


@pytest.mark.parametrize(
    "frames",
    [
        GREY,
        GREY[..., None],
        np.repeat(GREY[..., None], 3, axis=-1),
        GREY / 255,
        (GREY / 255).astype(np.float32)[..., None],
        list(GREY),
        (GREY[0], GREY[1][..., None] / 255),
        [np.repeat(GREY[0][..., None], 3, axis=-1), GREY[1]],
    ],
)
def test_the_same_frames_in_many_forms(frames):
    np.testing.assert_array_equal(np.stack(as_grey(frames)), GREY)


@pytest.mark.parametrize("frame", [GREY[0], GREY[0][..., None], GREY[0] / 255, [GREY[0]]])
def test_one_frame(frame):
    (grey,) = as_grey(frame)
    np.testing.assert_array_equal(grey, GREY[0])


def test_frames_of_a_list_may_differ_in_size():
    ragged = np.empty(2, object)
    ragged[:] = [GREY[0], GREY[0, :3]]
    for frames in ([GREY[0], GREY[0, :3]], ragged):
        assert [grey.shape for grey in as_grey(frames)] == [(6, 8), (3, 8)]


def test_colours_become_their_luminance_in_the_order_that_is_named():
    red = np.zeros((1, 2, 2, 3), np.uint8)
    red[..., 0] = 200
    assert as_grey(red, colours="rgb")[0].tolist() == [[60, 60]] * 2  # 0.299 of 200
    assert as_grey(red, colours="bgr")[0].tolist() == [[23, 23]] * 2  # 0.114 of 200
    np.testing.assert_array_equal(as_grey(red / 255, colours="rgb")[0], as_grey(red, colours="rgb")[0])
    with pytest.raises(InputError, match=r"order of their channels: load_encoder\(\.\.\., colours='rgb'\)"):
        as_grey(red)
    with pytest.raises(InputError, match="got 'RGB'"):
        require_colours("RGB")


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (GREY.astype(np.float32), r"from 0 to 1; got \d to 2\d\d\. If black is 0 and white 255, divide by 255"),
        ([GREY[0] / 255, GREY[1].astype(float)], "divide by 255"),
        (GREY / -255, "got -0.97"),
        (np.full((1, 4, 4), np.nan), "got nan"),
        (GREY.astype(np.int64), "uint8 from 0 to 255, or floats from 0 to 1; got int64"),
        (GREY.astype(np.uint16), "got uint16"),
        (GREY > 3, "got bool"),
        (np.zeros((1, 3, 6, 8), np.uint8), r"Move channels to the end"),
        (np.zeros((1, 6, 8, 4), np.uint8), "drop transparency"),
        (np.zeros(5, np.uint8), r"got \(5,\)"),
        ([np.zeros(5, np.uint8)], r"frame 0 has \(5,\)"),
        ([GREY], r"frame 0 has \(2, 6, 8\)"),
        ([], "at least one; got none"),
        (GREY[:0], "at least one; got none"),
        (GREY[:, :0], "must have pixels"),
        ("scan.png", r"python -m awcl_jax\.embed"),
    ],
)
def test_what_is_refused_in_one_line(frames, said):
    with pytest.raises(InputError, match=said) as refused:
        as_grey(frames)
    assert len(str(refused.value).splitlines()) == 1
