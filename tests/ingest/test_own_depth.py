"""Pictures and clips of more than 8 bits, and greys of every range: nothing is dropped without a word."""

import io
import struct
import zlib

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from awcl_jax.data import png as published
from awcl_jax.data.images import read_image
from awcl_jax.data.reader import decode_picture
from awcl_jax.ingest.own import images, videos
from awcl_jax.ingest.own.items import BadFileError, Fault, Reading
from awcl_jax.runtime.errors import InputError
from tests.helpers.own_files import moving_disc

DEEP = np.array([[4095, 2048, 1024, 512, 256, 0]], np.uint16)
WINDOW = Reading(window=(0, 4095))
# 255 v / 4095, by hand: 255, 127.5, 63.8, 31.9, 15.9, 0.
SHOWN = [[255, 128, 64, 32, 16, 0]]


def kind_of(read, *args):
    with pytest.raises(BadFileError) as error:
        read(*args)
    return error.value.kind


def png(bits, kind, rows, *chunks):
    """A PNG by hand, for what no library writes; `kind` is its colour type."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    width = len(rows[0]) * 8 // (bits * samples)
    header = struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    ends = [chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *(chunk(*c) for c in chunks), *ends])


def tiff(values, photometric, bits, order="<"):
    """A grey TIFF of one strip by hand."""
    entries = [
        *((256, 4, values.shape[1]), (257, 4, values.shape[0]), (258, 3, bits), (259, 3, 1), (262, 3, photometric)),
        *((273, 4, 8 + 2 + 12 * 9 + 4), (277, 3, 1), (278, 4, values.shape[0]), (279, 4, values.nbytes)),
    ]
    body = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        body += struct.pack(f"{order}HHI", tag, kind, 1)
        body += struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return start + body + bytes(4) + values.astype(values.dtype.newbyteorder(order)).tobytes()


def channels(*values, alpha=False):
    return np.dstack([*values, *([np.full_like(DEEP, 65535)] if alpha else [])])


FORMS = {
    "grey PNG": png(16, 0, [DEEP.astype(">u2").tobytes()]),
    "grey PNG, a colour transparent": png(16, 0, [DEEP.astype(">u2").tobytes()], (b"tRNS", b"\2\0")),
    "grey and alpha PNG": png(16, 4, [channels(DEEP, alpha=True).astype(">u2").tobytes()]),
    "colour PNG": cv2.imencode(".png", channels(DEEP, DEEP, DEEP))[1].tobytes(),
    "colour and alpha PNG": cv2.imencode(".png", channels(DEEP, DEEP, DEEP, alpha=True))[1].tobytes(),
    "grey TIFF": tiff(DEEP, 1, 16),
    "grey TIFF, big-endian": tiff(DEEP, 1, 16, ">"),
    "grey TIFF, white is 0": tiff(65535 - DEEP, 0, 16),
    "colour TIFF": cv2.imencode(".tiff", channels(DEEP, DEEP, DEEP))[1].tobytes(),
    "float TIFF": cv2.imencode(".tiff", DEEP.astype(np.float32))[1].tobytes(),
}


@pytest.mark.parametrize("form", FORMS)
def test_deep_pictures_are_shown_by_a_window_or_refused(form, tmp_path):
    path = tmp_path / "deep.png"
    path.write_bytes(FORMS[form])
    assert images.read_image(path, WINDOW).image.tolist() == SHOWN
    assert not images.read_image(path, WINDOW).colour
    assert kind_of(images.read_image, path, Reading()) == "bit_depth"
    for read in (read_image, published.read_grey, published.read_png):
        with pytest.raises(InputError, match="bits a pixel"):
            read(path)
    assert kind_of(images.read_mask, path, Reading(mask_names=("a", "b")), (1, 6)) == "bad_mask"


def test_deep_colours_become_their_luminance(tmp_path):
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), np.full((1, 2, 3), (1000, 2000, 4000), np.uint16))  # blue, green, red
    picture = images.read_image(path, Reading(window=(0, 5000)))
    # 0.299 * 4000 + 0.587 * 2000 + 0.114 * 1000 = 2484; 255 * 2484 / 5000 = 126.7.
    assert (picture.image.tolist(), picture.colour) == ([[127, 127]], True)


def test_a_jpeg_of_12_bits_says_so(tmp_path):
    jpeg = bytearray(cv2.imencode(".jpg", moving_disc(1)[0])[1].tobytes())
    at = jpeg.index(b"\xff\xc0") + 4
    assert jpeg[at] == 8
    jpeg[at] = 12
    (tmp_path / "x.jpg").write_bytes(jpeg)
    assert kind_of(images.read_image, tmp_path / "x.jpg", WINDOW) == "bit_depth"
    with pytest.raises(InputError, match="a JPEG of 12 bits"):
        read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("form", [form for form in FORMS if "PNG" in form])
@pytest.mark.parametrize("picture", ["image", "mask"])
def test_a_prepared_dataset_of_deep_pictures_is_refused(picture, form):
    assert decode_picture(picture, FORMS[form]) == (None, f"its {picture} is not an 8-bit grey PNG")


CHUNKS = {
    "gamma": (b"gAMA", struct.pack(">I", 220_000)),
    "sRGB": (b"sRGB", b"\0"),
    "transparent": (b"tRNS", b"\0\x1e"),
    "chromaticities": (b"cHRM", struct.pack(">8I", *[30_000] * 8)),
    "significant bits": (b"sBIT", b"\4"),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_greys_are_as_stored_whatever_a_png_says_of_their_colour(name, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png(8, 0, [bytes([10, 20, 30, 40, 250])], CHUNKS[name]))
    for grey in (images.read_image(path, Reading()).image, read_image(path), published.read_grey(path)):
        assert grey.tolist() == [[10, 20, 30, 40, 250]]


def test_cmyk_is_inverted_once(tmp_path):
    grey = moving_disc(1)[0]
    none = Image.fromarray(np.zeros_like(grey))
    Image.merge("CMYK", [none, none, none, Image.fromarray(255 - grey)]).save(tmp_path / "x.jpg", quality=98)
    for read in (images.read_image(tmp_path / "x.jpg", Reading()).image, read_image(tmp_path / "x.jpg")):
        assert np.abs(read.astype(int) - grey).mean() < 1


def test_greys_of_few_bits_are_stretched(tmp_path):
    (tmp_path / "x.png").write_bytes(png(2, 0, [bytes([0b00011011])]))
    assert images.read_image(tmp_path / "x.png", Reading()).image.tolist() == [[0, 85, 170, 255]]


# Masks ---------------------------------------------------------------------------------------------------------------


def palette(*colours, indices=((0, 1, 2),)):
    return png(8, 3, [bytes(row) for row in indices], (b"PLTE", b"".join(map(bytes, colours))))


BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (200, 0, 0), (0, 200, 0)


def test_a_palettes_indices_are_the_classes_not_its_colours(tmp_path):
    path = tmp_path / "m.png"
    names = ("background", "head", "brain")
    path.write_bytes(palette(BLACK, RED, GREEN))
    assert images.read_mask(path, Reading(mask_names=names), (1, 3)).tolist() == [[0, 1, 2]]
    assert published.read_mask(path, names, size=(1, 3)).tolist() == [[0, 1, 2]]
    # Greys that are classes themselves, in another order: a program made the file smaller.
    path.write_bytes(palette((2, 2, 2), BLACK, (1, 1, 1)))
    assert published.read_mask(path, names, size=(1, 3)).tolist() == [[2, 0, 1]]


@pytest.mark.parametrize("values", [(0, 255), (255, 255), (0, 0), (0, 1)])
def test_masks_of_0_and_255_are_two_classes(values, tmp_path):
    mask = np.array([values], np.uint8)
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    found = images.read_mask(tmp_path / "m.png", Reading(mask_names=("a", "b")), (1, 2))
    assert found.tolist() == [[int(value > 0) for value in values]]


@pytest.mark.parametrize(("values", "names"), [((0, 255), "abc"), ((0, 2), "ab"), ((1, 255), "ab"), ((0, 254), "ab")])
def test_other_values_are_no_two_classes(values, names, tmp_path):
    cv2.imwrite(str(tmp_path / "m.png"), np.array([values], np.uint8))
    assert kind_of(images.read_mask, tmp_path / "m.png", Reading(mask_names=tuple(names)), (1, 2)) == "bad_mask"


def test_a_palette_of_white_and_black_is_not_guessed(tmp_path):
    (tmp_path / "m.png").write_bytes(palette(WHITE, BLACK, indices=((0, 1),)))
    assert kind_of(images.read_mask, tmp_path / "m.png", Reading(mask_names=("a", "b")), (1, 2)) == "bad_mask"
    (tmp_path / "m.png").write_bytes(palette(BLACK, WHITE, indices=((0, 1),)))
    assert images.read_mask(tmp_path / "m.png", Reading(mask_names=("a", "b")), (1, 2)).tolist() == [[0, 1]]


# Clips ---------------------------------------------------------------------------------------------------------------

RAMP = np.tile(np.arange(256, dtype=np.uint8), (32, 1))


def ramp(path, codec, pixels, color_range=None, container=None, values=RAMP):
    """A clip of two frames of all greys."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *values.shape, pixels
        stream.options = {"crf": "1", "qscale": "1"}
        if color_range:
            stream.codec_context.color_range = color_range
        for _ in range(2):
            if values.dtype == np.uint8:
                frame = av.VideoFrame.from_ndarray(values, format="gray")
                frame = frame.reformat(format=pixels, src_color_range=2, dst_color_range=color_range or 1)
            else:
                frame = av.VideoFrame.from_ndarray(values, format=pixels)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def frames_of(path, reading):
    return [picture.image for picture in videos.open_video(path, reading).frames()]


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "color_range"),
    [
        ("x.mp4", "libx264", "yuv420p", 1),
        ("x.mp4", "libx264", "yuv420p", 2),
        ("x.mp4", "libx264", "yuvj420p", 2),
        ("x.mp4", "libx264", "yuv420p10le", 1),
        ("x.mkv", "ffv1", "yuv420p10le", 1),
        ("x.mkv", "ffv1", "gray", None),
        ("x.avi", "mjpeg", "yuvj420p", 2),
        ("x.avi", "rawvideo", "bgr24", None),
        ("x.avi", "rawvideo", "yuyv422", 1),
        ("x.avi", "huffyuv", "yuv422p", 1),
        ("x.mov", "qtrle", "rgb24", None),
    ],
)
def test_black_and_white_of_a_clip_are_0_and_255_once(name, codec, pixels, color_range, tmp_path):
    found = frames_of(ramp(tmp_path / name, codec, pixels, color_range), Reading(every=1))[0]
    # A limited range has 220 levels for 256, so that a level may be one off; stretched twice, 64 would be 55.
    assert np.abs(found.astype(int) - RAMP).max() <= 3
    assert np.abs(found.astype(int) - RAMP).mean() < 1


@pytest.mark.parametrize("pixels", ["gray16le", "gray10le", "gray12le"])
def test_clips_of_deep_greys_need_a_window(pixels, tmp_path):
    values = np.tile(np.arange(1000, dtype=np.uint16), (16, 1))
    path = ramp(tmp_path / "x.mkv", "ffv1", pixels, values=values)
    assert kind_of(frames_of, path, Reading(every=1)) == "bit_depth"
    shown = frames_of(path, Reading(every=1, window=(100, 610)))
    assert len(shown) == 2
    # 255 (v - 100) / 510 = (v - 100) / 2, cut off at 0 and 255.
    np.testing.assert_array_equal(shown[0][0], np.rint(np.clip((np.arange(1000) - 100) / 2, 0, 255)))


def test_clips_of_deep_colours_are_refused(tmp_path):
    path = ramp(tmp_path / "x.mkv", "ffv1", "gbrp16le")
    assert kind_of(frames_of, path, Reading(every=1, window=(0, 100))) == "bit_depth"


@pytest.mark.parametrize("size", [(63, 95), (1, 1), (33, 2), (48, 17)])
def test_odd_sizes_of_a_frame_grabber(size, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    found = frames_of(ramp(tmp_path / "x.avi", "rawvideo", "bgr24", values=values), Reading(every=1))[0]
    np.testing.assert_array_equal(found, values)


# Pages ---------------------------------------------------------------------------------------------------------------


def paged(path, pages, **options):
    pictures = [Image.fromarray(page) for page in pages]
    out = io.BytesIO()
    pictures[0].save(out, path.suffix[1:].replace("tif", "tiff"), save_all=True, append_images=pictures[1:], **options)
    path.write_bytes(out.getvalue())
    return path


@pytest.mark.parametrize(
    ("name", "options"), [("x.tif", {}), ("x.tif", {"compression": "tiff_lzw"}), ("x.gif", {"duration": 40})]
)
def test_pages_are_frames_of_a_clip(name, options, tmp_path):
    pages = moving_disc(12)
    path = paged(tmp_path / name, pages, **options)
    np.testing.assert_array_equal(frames_of(path, Reading(every=5)), pages[::5])
    if path.suffix != ".gif":
        assert kind_of(images.read_image, path, Reading()) == "several_pages"
        with pytest.raises(InputError, match="has 12 pictures"):
            read_image(path)


def test_deep_pages_need_a_window(tmp_path):
    pages = moving_disc(3).astype(np.uint16) * 16
    path = paged(tmp_path / "x.tif", pages)
    assert kind_of(frames_of, path, Reading(every=1)) == "bit_depth"
    np.testing.assert_array_equal(frames_of(path, Reading(every=1, window=(0, 255 * 16))), moving_disc(3))


@pytest.mark.parametrize(
    ("read", "kind", "known"), [(images.read_image, "no_image", "TIFF and WebP"), (frames_of, "no_video", "FFmpeg")]
)
def test_other_formats_are_a_line_that_says_what_is_read(read, kind, known, tmp_path):
    for name, data in {
        "x.nii": bytes(352),
        "x.mha": b"ObjectType = Image\nNDims = 3\n",
        "x.nrrd": b"NRRD0004\n",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert kind_of(read, tmp_path / name, Reading()) == kind
    assert known in Fault(1, kind).rule
