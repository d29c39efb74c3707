"""What a file's metadata say of how its picture is displayed, in every way that pictures come in."""

import io
import struct
import zlib
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from awcl_jax.data import png as published
from awcl_jax.data.images import read_image
from awcl_jax.data.reader import decode_picture
from awcl_jax.data.upright import orientation_of_matrix, square_width, upright, with_square_pixels
from awcl_jax.ingest.own import images, videos
from awcl_jax.ingest.own.items import BadFileError, Reading
from tests.helpers.orientations import SHOWN, lying, tagged_png, tagged_tiff
from tests.helpers.own_files import moving_disc, write_video

PLAIN = Reading()
GREY = moving_disc(1, size=(48, 64))[0]


# What a viewer shows of the stored pixels, by NumPy's own words.
@pytest.mark.parametrize("orientation", SHOWN)
def test_pixels_are_turned_as_pillow_turns_them(orientation):
    for pixels in (GREY, np.dstack([GREY, GREY // 2, GREY])):
        turned = upright(pixels, orientation)
        np.testing.assert_array_equal(
            turned, ImageOps.exif_transpose(Image.open(io.BytesIO(lying(pixels, orientation))))
        )
        assert turned.flags.c_contiguous


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_a_picture_is_read_upright_whatever_reads_it(form, orientation, tmp_path):
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(form, {})
    path = tmp_path / "a.png"  # named alike, for a publisher's layout goes by the name
    path.write_bytes(lying(GREY, orientation, form, **options))
    by_ingest = images.read_image(path, PLAIN).image
    np.testing.assert_allclose(by_ingest.astype(int), SHOWN[orientation](GREY), atol=2 if form == "JPEG" else 0)
    np.testing.assert_array_equal(read_image(path), by_ingest)
    np.testing.assert_array_equal(published.read_grey(path), by_ingest)
    stored = published.read_png(path)
    assert published.png_size(stored) == by_ingest.shape
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_UNCHANGED), by_ingest)


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_pictures_and_masks_are_turned_as_well(channels, form, orientation, tmp_path):
    deep = GREY.astype(np.uint16) * 16
    path = tmp_path / "deep"
    if channels == 1:
        path.write_bytes(lying(deep, orientation, form))
    else:
        whole = cv2.imencode(f".{form.lower()}", np.dstack([deep] * 3))[1].tobytes()
        path.write_bytes(tagged_tiff(whole, orientation) if form == "TIFF" else tagged_png(whole, orientation))
    picture = images.read_image(path, Reading(window=(0, 255 * 16)))
    np.testing.assert_array_equal(picture.image, SHOWN[orientation](GREY))
    mask = (GREY > 128).astype(np.uint8)
    path.write_bytes(lying(mask, orientation, form))
    shown = SHOWN[orientation](mask)
    reading = Reading(mask_names=("background", "head"))
    np.testing.assert_array_equal(images.read_mask(path, reading, shown.shape), shown)
    np.testing.assert_array_equal(published.read_mask(path, reading.mask_names, size=shown.shape), shown)


@pytest.mark.parametrize(
    "broken", [b"", b"II*\0", b"no EXIF at all", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01\0\0\0\0"]
)
def test_a_broken_orientation_is_none(broken, tmp_path):
    data = lying(GREY, 1)
    at = data.index(b"eXIf")
    head = b"eXIf" + broken
    rest = data[at + 8 + int.from_bytes(data[at - 4 : at]) :]
    chunk = struct.pack(">I", len(broken)) + head + struct.pack(">I", zlib.crc32(head))
    (tmp_path / "a.png").write_bytes(data[: at - 4] + chunk + rest)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png", PLAIN).image, GREY)
    np.testing.assert_array_equal(published.read_grey(tmp_path / "a.png"), GREY)


def test_a_record_is_read_as_it_is_stored(tmp_path):
    data = lying(GREY, 6)
    for picture in ("image", "mask"):
        np.testing.assert_array_equal(decode_picture(picture, data)[0], GREY)
    # As those decode it who have TFDS alone.
    feature = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    np.testing.assert_array_equal(feature.decode_example_np(data)[..., 0], GREY)


# Videos --------------------------------------------------------------------------------------------------------------


def clip(path, turn=0, matrix=None, aspect=None, codec="libx264"):
    """Six frames with a display matrix; `matrix` replaces a, b, c, d of one that `turn` wrote."""
    frames = moving_disc(6, size=(128, 160))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 128, 160, "yuv420p"
        stream.options, stream.bit_rate = {"crf": "8", "qscale": "2"}, 8_000_000
        if turn or matrix:
            stream.set_display_rotation(turn or 90)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    if matrix:
        data = path.read_bytes()
        at = data.index(b"tkhd") + 44  # in the box of the track's header, see ISO/IEC 14496-12, 8.3.2
        a, b, c, d = (value << 16 for value in matrix)
        path.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
    return frames


def read(path, **fields):
    return [picture.image for picture in videos.open_video(path, Reading(every=1, **fields)).frames()]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("turn", [0, 90, 180, 270, -90])
def test_videos_are_turned_as_opencv_turns_them(turn, suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    frames = clip(path, turn)
    capture = cv2.VideoCapture(str(path))
    for image, frame in zip(read(path), frames, strict=True):
        colours = capture.read()[1]
        assert np.abs(image.astype(int) - cv2.cvtColor(colours, cv2.COLOR_BGR2GRAY)).mean() < 1
        assert np.abs(image.astype(int) - np.rot90(frame, turn // 90)).mean() < 1
    assert capture.read()[0] is False


@pytest.mark.parametrize(
    ("matrix", "orientation"),
    [((-1, 0, 0, 1), 2), ((1, 0, 0, -1), 4), ((0, 1, 1, 0), 5), ((0, -1, -1, 0), 7), ((0, 1, -1, 0), 6)],
)
def test_mirrored_videos(matrix, orientation, tmp_path):
    # A point (x, y) of the stored frame is shown at (a x + c y, b x + d y): (-1, 0, 0, 1) mirrors left to right.
    frames = clip(tmp_path / "x.mp4", matrix=matrix)
    for image, frame in zip(read(tmp_path / "x.mp4"), frames, strict=True):
        assert np.abs(image.astype(int) - SHOWN[orientation](frame)).mean() < 1


def test_display_matrices_in_numbers():
    one = 1 << 16
    assert orientation_of_matrix((one, 0, 0, 0, one, 0, 0, 0, 1 << 30)) == 1
    assert orientation_of_matrix((3, -one, 0, one - 7, 2, 0, 0, 0, 1 << 30)) == 8  # rounded
    assert orientation_of_matrix((0,) * 9) == 1
    assert orientation_of_matrix((46_341, -46_341, 0, 46_341, 46_341, 0, 0, 0, 1 << 30)) is None


def test_a_slanted_video_is_refused(tmp_path):
    clip(tmp_path / "x.mp4", 45)
    with pytest.raises(BadFileError) as error:
        read(tmp_path / "x.mp4")
    assert error.value.kind == "slanted"


@pytest.mark.parametrize(
    ("suffix", "codec", "aspect", "width"),
    [
        ("mp4", "libx264", "3:2", 240),
        ("mkv", "libx264", "1:2", 80),
        ("avi", "mpeg4", "12:11", 175),
        ("mp4", "libx264", "1:1", 160),
    ],
)
def test_pixels_of_a_video_become_squares(suffix, codec, aspect, width, tmp_path):
    path = tmp_path / f"x.{suffix}"
    frames = clip(path, aspect=Fraction(*map(int, aspect.split(":"))), codec=codec)
    for image, frame in zip(read(path), frames, strict=True):
        assert image.shape == (128, width)
        wanted = Image.fromarray(frame).resize((width, 128), Image.Resampling.BILINEAR)
        assert np.abs(image.astype(int) - np.asarray(wanted)).mean() < 2


def test_a_turned_video_is_stretched_before(tmp_path):
    clip(tmp_path / "x.mp4", 90, aspect=Fraction(3, 2))
    assert {image.shape for image in read(tmp_path / "x.mp4")} == {(240, 128)}
    with pytest.raises(BadFileError) as error:
        read(tmp_path / "x.mp4", max_pixels=200 * 128)
    assert error.value.kind == "too_large"


def test_square_pixels_by_hand():
    # Three pixels of three times the height become one of their average.
    assert with_square_pixels(np.array([[10, 20, 60, 0, 0, 90]], np.uint8), Fraction(1, 3)).tolist() == [[30, 30]]
    assert with_square_pixels(np.array([[10, 20]], np.uint8), None).tolist() == [[10, 20]]
    assert (square_width(3, Fraction(1, 100)), square_width(3, Fraction(0)), square_width(3, Fraction(2))) == (1, 3, 6)


def test_frames_of_a_plain_clip_stay_as_they_are(tmp_path):
    write_video(tmp_path / "x.mp4", moving_disc(3, size=(64, 96)))
    with av.open(str(tmp_path / "x.mp4")) as container:
        plain = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    np.testing.assert_array_equal(read(tmp_path / "x.mp4"), plain)
