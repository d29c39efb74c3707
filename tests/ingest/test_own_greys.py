"""DICOM's greys: what every codec's stream says of its colours against every tag, and values deeper than 8 bits.

The components that went into a stream are known here (`STORED`), so that the right grey of each cell of the table is
worked out from them: by OpenCV, as RGB or as YCbCr.
"""

import base64
import functools
import io
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import openjpeg.utils
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import UInt8
from PIL import Image
from pydicom.pixels import get_decoder
from pydicom.uid import (
    HTJ2K,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLSLossless,
    RLELossless,
)

from awcl_jax.ingest.own.codestream import read_codestream
from awcl_jax.ingest.own.dicom import open_dicom
from awcl_jax.ingest.own.items import BadFileError, Reading
from tests.helpers.own_files import NATIVE, encode_frame, moving_disc, region_item, write_dicom, write_streams

ALL = Reading(every=1)
SIZE = (48, 64)
TAGS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_422")
OPEN = dict(zip(TAGS, ("rgb", "ybr", "ybr", "rgb", "rgb", "partial"), strict=True))
"""What a tag says where the stream says nothing."""


def frames_of(path: Path, reading: Reading = ALL) -> np.ndarray:
    return np.stack([picture.image for picture in open_dicom(path, reading).frames()])


def fault_of(path: Path, reading: Reading = ALL) -> tuple[str, str]:
    with pytest.raises(BadFileError) as error:
        frames_of(path, reading)
    return error.value.kind, error.value.detail


def colourful() -> UInt8[np.ndarray, "h w 3"]:
    """Components of which hardly a pixel is grey, neither as RGB nor as YCbCr, so that pixels say nothing."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    waves = [np.sin(columns / 9 + n) + np.cos(rows / 7 - n) for n in (0, 2, 4)]
    return np.rint(128 + 40 * np.stack(waves, -1) + (30, -40, 40)).clip(0, 255).astype(np.uint8)


def scan(*, colour: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """A dark ultrasound picture as RGB, with a patch of Doppler."""
    grey = np.clip(moving_disc(1, SIZE)[0].astype(int) - 90, 0, 255).astype(np.uint8)
    rgb = np.stack([grey] * 3, -1)
    if colour:
        rgb[8:20, 10:26] = 200, 40, 30
    return rgb


STORED = colourful()


def grey_of(components: np.ndarray, model: str) -> UInt8[np.ndarray, "h w"]:
    if model == "partial":  # ITU-R BT.601, 16 to 235
        y, cb, cr = (components[..., n].astype(float) for n in range(3))
        r = (y - 16) * 255 / 219 + (cr - 128) * 1.402 * 255 / 224
        b = (y - 16) * 255 / 219 + (cb - 128) * 1.772 * 255 / 224
        g = (y - 16) * 255 / 219 - ((cb - 128) * 0.344136 + (cr - 128) * 0.714136) * 255 / 224
        components = np.rint(np.stack([r, g, b], -1).clip(0, 255)).astype(np.uint8)
    if model == "ybr":
        components = cv2.cvtColor(np.ascontiguousarray(components[..., [0, 2, 1]]), cv2.COLOR_YCrCb2RGB)
    return cv2.cvtColor(components, cv2.COLOR_RGB2GRAY)


def to_ybr(rgb: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]])


def assert_read_as(path: Path, components: np.ndarray, model: str, tolerance: float = 2) -> None:
    for grey in frames_of(path):
        worst = np.abs(grey.astype(int) - grey_of(components, model)).mean()
        assert worst < tolerance, (model, worst)


# JPEG: APP0 (JFIF), APP14 (Adobe, with its transform) and the ids of components, put in place of Pillow's.
JFIF = b"\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
ADOBE = {n: b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0" + bytes([n]) for n in (0, 1, 2)}
IDS = {"123": b"\1\2\3", "RGB": b"RGB", "rgb": b"rgb", "012": b"\0\1\2"}
MARKERS = {"none": b"", "jfif": JFIF, "adobe 0": ADOBE[0], "adobe 1": ADOBE[1], "both": JFIF + ADOBE[0]}


def remark(stream: bytes, markers: bytes, ids: bytes) -> bytes:
    """A JPEG or JPEG-LS stream with these markers for its own and these ids of components."""
    kept, at = [], 2
    while True:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        segment = bytearray(stream[at : at + 2 + length])
        if marker in (0xC0, 0xC1, 0xC3, 0xF7):
            segment[10:19:3] = ids
        if marker == 0xDA:
            segment[5:11:2] = ids
            return b"\xff\xd8" + markers + b"".join(kept) + bytes(segment) + stream[at + 2 + length :]
        if marker not in (0xE0, 0xEE):
            kept.append(bytes(segment))
        at += 2 + length


@functools.cache
def jpeg(subsampling: int = 0) -> bytes:
    """Of `STORED`, as they are."""
    data = io.BytesIO()
    Image.fromarray(STORED, "YCbCr").save(data, "JPEG", quality=100, subsampling=subsampling)
    return data.getvalue()


JPEG = {
    ("none", "123"): "ybr",
    ("none", "RGB"): "rgb",
    ("none", "rgb"): "rgb",
    ("none", "012"): OPEN,
    ("jfif", "123"): "ybr",
    ("jfif", "012"): "ybr",
    ("jfif", "RGB"): OPEN,
    ("adobe 0", "123"): "rgb",
    ("adobe 0", "012"): "rgb",
    ("adobe 0", "RGB"): "rgb",
    ("adobe 1", "123"): "ybr",
    ("adobe 1", "012"): "ybr",
    ("adobe 1", "RGB"): "ybr",
    ("both", "123"): "ybr",
}
"""Markers and ids -> what the components are, whatever the tag says, or by the tag."""


@pytest.mark.parametrize(("markers", "ids"), JPEG)
def test_jpeg(tmp_path, markers, ids):
    stream, model = remark(jpeg(), MARKERS[markers], IDS[ids]), JPEG[markers, ids]
    for tag in TAGS:
        path = write_streams(tmp_path / "x.dcm", [stream], SIZE, syntax=JPEGBaseline8Bit, photometric=tag)
        assert_read_as(path, STORED, model if isinstance(model, str) else model[tag])
    if isinstance(model, str) and ids != "rgb":
        # libjpeg-turbo by way of OpenCV agrees wherever the stream speaks for itself.
        shown = cv2.cvtColor(cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2GRAY)
        assert np.abs(frames_of(path)[0].astype(int) - shown).max() <= 3


@pytest.mark.parametrize(("markers", "ids"), [("none", "123"), ("none", "012"), ("jfif", "RGB"), ("adobe 1", "123")])
def test_jpeg_with_fewer_colours_than_greys_is_ybr(tmp_path, markers, ids):
    stream = remark(jpeg(subsampling=2), MARKERS[markers], IDS[ids])
    for tag in TAGS:
        path = write_streams(tmp_path / "x.dcm", [stream], SIZE, syntax=JPEGBaseline8Bit, photometric=tag)
        assert_read_as(path, STORED, "ybr")


def test_jpeg_of_one_component_is_grey_whatever_the_tag(tmp_path):
    grey = moving_disc(1, SIZE)[0]
    stream = encode_frame(grey, JPEGBaseline8Bit)
    for tag in (*TAGS, "MONOCHROME2"):
        path = write_streams(tmp_path / "x.dcm", [stream], SIZE, syntax=JPEGBaseline8Bit, photometric=tag)
        assert np.abs(frames_of(path)[0].astype(int) - grey).mean() < 1
    path = write_streams(tmp_path / "x.dcm", [stream], SIZE, syntax=JPEGBaseline8Bit, photometric="MONOCHROME1")
    assert np.abs(255 - frames_of(path)[0].astype(int) - grey).mean() < 1


LOSSLESS_JPEG = {
    ("none", "123"): OPEN,
    ("none", "012"): OPEN,
    ("none", "RGB"): "rgb",
    ("jfif", "123"): "ybr",
    ("jfif", "RGB"): OPEN,
    ("adobe 0", "123"): "rgb",
    ("adobe 1", "123"): "ybr",
}


@pytest.mark.parametrize(("markers", "ids"), LOSSLESS_JPEG)
@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLSLossless], ids=lambda syntax: syntax.keyword)
def test_lossless_jpeg_and_jpeg_ls(tmp_path, syntax, markers, ids):
    stream = remark(encode_frame(STORED, syntax, "YBR_FULL"), MARKERS[markers], IDS[ids])
    model = LOSSLESS_JPEG[markers, ids]
    for tag in TAGS:
        path = write_streams(tmp_path / "x.dcm", [stream], SIZE, syntax=syntax, photometric=tag)
        assert_read_as(path, STORED, model if isinstance(model, str) else model[tag], tolerance=1)


def jpeg_ls_by_planes() -> bytes:
    """A JPEG-LS stream of `STORED` in three scans, put together out of three streams of one component."""
    scans = []
    for n in range(3):
        stream = encode_frame(np.ascontiguousarray(STORED[..., n]), JPEGLSLossless)
        start = stream.find(b"\xff\xda")
        scans.append(
            b"\xff\xda\0\x08\x01" + bytes([n + 1]) + b"\0" * 4 + stream[start + 10 : stream.rfind(b"\xff\xd9")]
        )
    header = b"\xff\xf7\0\x11\x08" + b"".join(n.to_bytes(2, "big") for n in SIZE) + b"\3\1\x11\0\2\x11\0\3\x11\0"
    return b"\xff\xd8" + header + b"".join(scans) + b"\xff\xd9"


def jpeg_ls_by_lines() -> bytes:
    """The same by FFmpeg, whose lines of the three components take turns."""
    encoder = av.CodecContext.create("jpegls", "w")
    encoder.height, encoder.width = SIZE
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1, 25)
    packets = [*encoder.encode(av.VideoFrame.from_ndarray(STORED, format="rgb24")), *encoder.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


@pytest.mark.parametrize("stream", [jpeg_ls_by_planes, jpeg_ls_by_lines])
def test_orders_of_jpeg_ls(tmp_path, stream):
    path = write_streams(tmp_path / "x.dcm", [stream()], SIZE, syntax=JPEGLSLossless, photometric="RGB")
    np.testing.assert_array_equal(frames_of(path)[0], grey_of(STORED, "rgb"))


def jpeg2000(components: np.ndarray, *, mct: bool, jp2: str = "") -> bytes:
    """With a header of JP2 that names YCbCr or RGB, or without."""
    colours = {"": 1, "rgb": 1, "ybr": 3}[jp2]
    encode = openjpeg.utils.encode_array
    return bytes(encode(components, photometric_interpretation=colours, use_mct=mct, codec_format=1 if jp2 else 0))


def jpeg2000_of_fewer_colours(ybr: np.ndarray) -> bytes:
    """By FFmpeg, with a sample of colour to two of grey."""
    frame = av.VideoFrame(SIZE[1], SIZE[0], "yuv422p")
    for plane, values in zip(frame.planes, (ybr[..., 0], ybr[:, ::2, 1], ybr[:, ::2, 2]), strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : plane.width] = values
        plane.update(padded)
    encoder = av.CodecContext.create("jpeg2000", "w")
    encoder.height, encoder.width = SIZE
    encoder.pix_fmt, encoder.time_base = "yuv422p", Fraction(1, 25)
    encoder.options = {"format": "j2k", "pred": "dwt53"}
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


JPEG2000 = {
    "no transformation": (functools.partial(jpeg2000, mct=False), OPEN),
    "transformation": (functools.partial(jpeg2000, mct=True), OPEN),
    "JP2, RGB": (functools.partial(jpeg2000, mct=False, jp2="rgb"), OPEN),
    "JP2, YCbCr": (functools.partial(jpeg2000, mct=False, jp2="ybr"), "ybr"),
    "fewer colours": (jpeg2000_of_fewer_colours, "ybr"),
}


@pytest.mark.parametrize("kind", JPEG2000)
@pytest.mark.parametrize("plugin", ["pylibjpeg", "pillow"])
def test_jpeg_2000_by_either_plugin(tmp_path, monkeypatch, kind, plugin):
    decoder = get_decoder(JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", {plugin: decoder._available[plugin]})
    encode, model = JPEG2000[kind]
    smooth = cv2.blur(STORED, (9, 9))  # so that colours hardly change from a pixel to the next
    stream = encode(smooth)
    for tag in TAGS:
        path = write_streams(tmp_path / "x.dcm", [stream], SIZE, syntax=JPEG2000Lossless, photometric=tag)
        assert_read_as(path, smooth, model if isinstance(model, str) else model[tag])


# A picture of 16 x 16, r = 16 x, g = 16 y, b = 8 (x + y), by OpenJPH 0.26.3, without and with the transformation.
HTJ2K_STREAMS = (
    (
        "/0//UQAvQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAADBwEBBwEBBwEB/1AACAACAAAAAv9SAAwAAgABAAUEBEAB/1wAEyBIUFBQ"
        "UFBQUFBQUFBQSEhI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAM8AAf+TwCXtAId0AMAl7QCHdADAJesAh3QAAAAAwBKAIgGHdACg"
        "CUAiAYd0AMASwBKAkAEHdACQAQd0AMATABDIAQJ0AKAJgJCQAENUAMATQBMACPIAgnQASOQAI1QAwBUAhmEYqnCCdQCgCqBGwzD+wBCB7LYAwBUQ"
        "BUhCCPGqcAJ1AKIQ4sAAAey2AMArAO7u7u7nwKenp8J4AKAVgN7d3d398nv3yey4AMAq4BVgtm3b58Cnp6dCeABu27b9knv2Sey4AP/Z"
    ),
    (
        "/0//UQAvQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAADBwEBBwEBBwEB/1AACAACAAAAA/9SAAwAAgABAQUEBEAB/1wAEyBQWFhY"
        "WFhYWFhYWFhYUFBQ/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAARkAAf+TwBKA6wCHdADAEgD+AGMAAAAAAMAJYASg7ACHdAC2AQd0"
        "AMAJYASgkAEHdACRAQd0AMAJYASgIgGHdAAjAYd0AMAJoATA1v4AAnQAWu0AI1QAwAmgBMAI8gCCdADH4wAjVADACaAEwBDIAQJ0AJGRAENUAMAJ"
        "4AVIqqqgp8J1ACxj7MAAAey2AMAKiAFSQgjxqnACdQDjGOPAAAHstgDACogBVIZhGKpwgnUAx+M4/sAQgey2AMAVcAVokiRJ58Cnp6dCeABSRERE"
        "/v3ye/fJ7LgAwBVwBWC2bdvnwKenp0J4AP9//3/9knv2Sey4AMAVkAVg7u7u7ufAp6enwngA/3//f/3ye/fJ7LgA/9k="
    ),
)


@pytest.mark.parametrize("text", HTJ2K_STREAMS, ids=["no transformation", "transformation"])
@pytest.mark.parametrize("plugin", ["pylibjpeg", "pillow"])
def test_high_throughput_jpeg_2000(tmp_path, monkeypatch, text, plugin):
    decoder = get_decoder(JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", {plugin: decoder._available[plugin]})
    y, x = np.mgrid[:16, :16]
    stored = np.stack([16 * x, 16 * y, 8 * (x + y)], -1).astype(np.uint8)
    for tag in TAGS:
        path = write_streams(tmp_path / "x.dcm", [base64.b64decode(text)], (16, 16), syntax=HTJ2K, photometric=tag)
        assert_read_as(path, stored, OPEN[tag], tolerance=1)


def test_lossless_jpeg_without_gdcm(tmp_path, monkeypatch):
    stream = encode_frame(STORED, JPEGLossless, "YBR_FULL")
    path = write_streams(tmp_path / "x.dcm", [stream], SIZE, syntax=JPEGLossless, photometric="YBR_FULL")
    expected = frames_of(path)
    monkeypatch.setattr(get_decoder(JPEGLossless), "_available", {})
    np.testing.assert_array_equal(frames_of(path), expected)


@pytest.mark.parametrize("tag", TAGS)
def test_rle(tmp_path, tag):
    ds = pydicom.dcmread(write_dicom(tmp_path / "x.dcm", [STORED], photometric="RGB", syntax=RLELossless))
    ds.PhotometricInterpretation = tag
    ds.save_as(tmp_path / "x.dcm")
    assert_read_as(tmp_path / "x.dcm", STORED, OPEN[tag], tolerance=1)


def halved(components: np.ndarray) -> np.ndarray:
    """Y1 Y2 Cb Cr, of two pixels (PS3.3 C.7.6.3.1.2)."""
    y = components[..., 0].reshape(-1, 2)
    return np.concatenate([y, components[:, ::2, 1:].reshape(-1, 2)], -1).astype(np.uint8)


@pytest.mark.parametrize(("syntax", "count"), [(ExplicitVRLittleEndian, 1), (ExplicitVRBigEndian, 3)])
@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("tag", TAGS)
def test_pixels_that_are_not_compressed(tmp_path, syntax, tag, planar, count):
    pixels = np.stack([STORED] * count)
    path = write_dicom(tmp_path / "x.dcm", pixels, photometric=tag, syntax=syntax)
    ds = pydicom.dcmread(path)
    ds.PixelData = (pixels.transpose(0, 3, 1, 2) if planar else pixels).tobytes()
    ds.PlanarConfiguration = planar
    ds.save_as(path)
    assert_read_as(path, STORED, OPEN[tag], tolerance=1)
    assert len(frames_of(path)) == count
    if "422" in tag and not planar:  # with two samples a pixel as well as with three
        twice = np.repeat(STORED[:, ::2], 2, axis=1)
        twice[..., 0] = STORED[..., 0]
        ds.PixelData = halved(STORED).tobytes() * count
        ds.save_as(path)
        assert_read_as(path, twice, OPEN[tag], tolerance=1)
        assert len(frames_of(path)) == count


def test_a_length_that_does_not_fit_its_tags_is_named(tmp_path):
    path = write_dicom(tmp_path / "x.dcm", [STORED], photometric="RGB")
    ds = pydicom.dcmread(path)
    ds.PixelData = halved(STORED).tobytes()
    ds.save_as(path)
    assert fault_of(path) == (
        "contradiction",
        "its length fits YBR_FULL_422, but PhotometricInterpretation is another",
    )
    ds.PhotometricInterpretation = "YBR_FULL_422"
    ds.PixelData = STORED.tobytes() * 2  # as long as three frames of YBR_FULL_422
    ds.save_as(path)
    assert fault_of(path) == ("contradiction", "its length fits both YBR_FULL and YBR_FULL_422")
    ds.PixelData = STORED.tobytes() + b"\0" * 100  # as long as one frame of YBR_FULL_422, and half of another
    ds.save_as(path)
    assert fault_of(path) == ("contradiction", "its length fits both YBR_FULL and YBR_FULL_422")
    ds.PixelData = halved(STORED).tobytes() + b"\0" * 100
    ds.save_as(path)
    assert len(frames_of(path)) == 1
    path = write_dicom(tmp_path / "x.dcm", [STORED[..., 0]], PhotometricInterpretation="RGB")
    assert fault_of(path)[0] == "contradiction"


STREAMS = {
    "native": (ExplicitVRLittleEndian, None),
    "RLE": (RLELossless, None),
    "lossless JPEG": (JPEGLossless, lambda stored: encode_frame(stored, JPEGLossless, "YBR_FULL")),
    "JPEG-LS": (JPEGLSLossless, lambda stored: encode_frame(stored, JPEGLSLossless, "YBR_FULL")),
    "JPEG 2000": (JPEG2000Lossless, functools.partial(jpeg2000, mct=False)),
    "JPEG 2000, transformed": (JPEG2000Lossless, functools.partial(jpeg2000, mct=True)),
}


@pytest.mark.parametrize("codec", STREAMS)
@pytest.mark.parametrize("stored_as", ["rgb", "ybr"])
@pytest.mark.parametrize("colour", [True, False])
def test_a_tag_that_the_pixels_deny_is_overruled(tmp_path, codec, stored_as, colour):
    rgb = scan(colour=colour)
    stored = rgb if stored_as == "rgb" else to_ybr(rgb)
    syntax, encode = STREAMS[codec]
    for tag in ("RGB", "YBR_FULL", "YBR_RCT"):
        if encode is None:
            path = write_dicom(tmp_path / "x.dcm", [stored], photometric="RGB", syntax=syntax)
            ds = pydicom.dcmread(path)
            ds.PhotometricInterpretation = tag
            ds.save_as(path)
        else:
            path = write_streams(tmp_path / "x.dcm", [encode(stored)], SIZE, syntax=syntax, photometric=tag)
        assert_read_as(path, stored, stored_as, tolerance=1)


def test_colours_that_nothing_tells_are_refused(tmp_path):
    ds = pydicom.dcmread(write_dicom(tmp_path / "x.dcm", [STORED], photometric="RGB"))
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.save_as(tmp_path / "x.dcm")
    assert fault_of(tmp_path / "x.dcm") == ("contradiction", "it is unclear whether its colours are RGB or YCbCr")
    for stored, model in ((scan(), "rgb"), (to_ybr(scan()), "ybr")):
        ds.PixelData = stored.tobytes()
        ds.save_as(tmp_path / "x.dcm")
        assert_read_as(tmp_path / "x.dcm", stored, model, tolerance=1)


def test_an_adobe_marker_does_not_convert_twice(tmp_path):
    """Greys 20, 90, 160 and 230 in a YCbCr stream that says so by Adobe's marker."""
    grey = np.repeat(np.array([20, 90, 160, 230], np.uint8), 16)[None].repeat(48, 0)
    data = io.BytesIO()
    Image.fromarray(np.stack([grey] * 3, -1)).save(data, "JPEG", quality=95, subsampling=0)
    stream = remark(data.getvalue(), ADOBE[1], IDS["123"])
    for tag in TAGS:
        path = write_streams(tmp_path / "x.dcm", [stream], SIZE, syntax=JPEGBaseline8Bit, photometric=tag)
        assert frames_of(path)[0][24, 8::16].tolist() == pytest.approx([20, 90, 160, 230], abs=1)


def test_what_the_stream_says_of_itself():
    """The header's own account, which the decoders above never see all of."""
    stream = read_codestream(jpeg(subsampling=2))
    assert (stream.codec, stream.size, stream.components, stream.precision) == ("jpeg", SIZE, 3, 8)
    deep = moving_disc(1, SIZE)[0].astype(np.uint16) * 16
    for syntax, codec in ((JPEGLossless, "lossless"), (JPEGLSLossless, "jpeg_ls")):
        stream = read_codestream(encode_frame(deep, syntax))
        assert (stream.codec, stream.size, stream.components, stream.precision) == (codec, SIZE, 1, 16)
    stream = read_codestream(jpeg2000(STORED, mct=True, jp2="ybr"))
    assert (stream.codec, stream.size, stream.components, stream.precision) == ("jpeg2000", SIZE, 3, 8)
    assert stream.colours == "ybr"
    whole = jpeg()
    assert [read_codestream(whole[:length]) for length in (0, 3, 20, 100)] == [None] * 4


# Depth


def palette(values: np.ndarray, bits: int) -> dict[str, object]:
    """The tags of a palette, the same in all three colours."""
    tags: dict[str, object] = {}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [len(values), 0, bits]
        tags[f"{colour}PaletteColorLookupTableData"] = values.tobytes()
    return tags


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("entries", ["bytes", "bytes in words", "words"])
def test_entries_of_a_palette(tmp_path, syntax, bits, entries):
    frame = moving_disc(1, SIZE)[0]
    order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
    values = {
        "bytes": np.arange(256, dtype=np.uint8),
        "bytes in words": np.arange(256).astype(order),
        "words": (np.arange(256) * 257).astype(order),
    }[entries]
    path = write_dicom(tmp_path / "x.dcm", [frame], syntax=syntax, photometric="PALETTE COLOR", **palette(values, bits))
    np.testing.assert_array_equal(frames_of(path)[0], frame)


def test_colours_of_a_palette(tmp_path):
    frame = moving_disc(1, SIZE)[0]
    tags = palette(np.arange(256, dtype=np.uint8), 8)
    tags["BluePaletteColorLookupTableData"] = np.arange(256, dtype=np.uint8)[::-1].tobytes()
    path = write_dicom(tmp_path / "x.dcm", [frame], photometric="PALETTE COLOR", **tags)
    (picture,) = open_dicom(path, ALL).frames()
    np.testing.assert_array_equal(picture.image, grey_of(np.stack([frame, frame, 255 - frame], -1), "rgb"))
    assert picture.colour
    path = write_dicom(tmp_path / "x.dcm", [frame], photometric="PALETTE COLOR")
    assert fault_of(path) == ("bad_tag", "RedPaletteColorLookupTableDescriptor is missing")


def lut_item(values: np.ndarray, first: int, bits: int) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [len(values) % (1 << 16), first, bits])
    item.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    return item


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_voi_lut_is_the_window(tmp_path, bits):
    deep = (moving_disc(1, SIZE)[0].astype(np.uint16) - 20) * 16
    table = np.rint((2**bits - 1) * np.linspace(0, 1, 3000) ** 2).astype(int)
    tags = {"VOILUTSequence": [lut_item(table, 100, bits)], "BitsStored": 12, "HighBit": 11}
    path = write_dicom(tmp_path / "x.dcm", [deep], **tags)
    expected = 255 * np.clip((deep.astype(float) - 100) / 2999, 0, 1) ** 2
    np.testing.assert_allclose(frames_of(path)[0], expected, atol=1.1)
    low, high = 0, 4095  # the user's window goes before it
    expected = np.rint(255 * deep.astype(float) / high)
    np.testing.assert_array_equal(frames_of(path, Reading(every=1, window=(low, high)))[0], expected)


def test_a_modality_lut_goes_before_the_window(tmp_path):
    deep = (moving_disc(1, SIZE)[0].astype(np.uint16)) * 16
    table = np.arange(4096)[::-1]
    tags = {"ModalityLUTSequence": [lut_item(table, 0, 16)], "BitsStored": 12, "HighBit": 11}
    path = write_dicom(tmp_path / "x.dcm", [deep], WindowCenter=2048, WindowWidth=4096, **tags)
    np.testing.assert_allclose(frames_of(path)[0], 255 * (1 - deep / 4095), atol=1)


def test_white_is_zero_with_a_window(tmp_path):
    deep = moving_disc(1, SIZE)[0].astype(np.uint16) * 16
    path = write_dicom(tmp_path / "x.dcm", [deep], photometric="MONOCHROME1", BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(frames_of(path, Reading(every=1, window=(0, 4080)))[0], 255 - moving_disc(1, SIZE)[0])


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1", "RGB"])
def test_a_window_leaves_eight_bits_as_they_are(tmp_path, photometric):
    frame = moving_disc(1, SIZE)[0] if photometric != "RGB" else STORED
    path = write_dicom(tmp_path / "x.dcm", [frame], photometric=photometric)
    np.testing.assert_array_equal(frames_of(path, Reading(every=1, window=(0, 4095))), frames_of(path))


@pytest.mark.parametrize("bits", [1, 2, 4, 7])
def test_fewer_than_eight_bits_are_spread_over_all_greys(tmp_path, bits):
    frame = moving_disc(1, SIZE)[0] >> (8 - bits)
    path = write_dicom(tmp_path / "x.dcm", [frame], BitsStored=bits, HighBit=bits - 1)
    expected = np.rint(frame.astype(int) * 255 / (2**bits - 1))
    np.testing.assert_array_equal(frames_of(path)[0], expected)
    path = write_dicom(tmp_path / "x.dcm", [frame], photometric="MONOCHROME1", BitsStored=bits, HighBit=bits - 1)
    np.testing.assert_array_equal(frames_of(path)[0], 255 - expected)
    path = write_dicom(tmp_path / "x.dcm", [STORED >> (8 - bits)], photometric="RGB", BitsStored=bits, HighBit=bits - 1)
    expected = grey_of(STORED >> (8 - bits) << (8 - bits), "rgb")
    np.testing.assert_allclose(frames_of(path)[0], expected, atol=1)
    # A palette has greys of its own.
    table = np.linspace(0, 200, 2**bits).astype(np.uint8)
    tags = palette(table, 8) | {"BitsStored": bits, "HighBit": bits - 1}
    path = write_dicom(tmp_path / "x.dcm", [frame], photometric="PALETTE COLOR", **tags)
    np.testing.assert_array_equal(frames_of(path)[0], table[frame])


def test_a_bit_for_each_pixel_is_black_or_white(tmp_path):
    frame = moving_disc(1, SIZE)[0] > 128
    ds = pydicom.dcmread(write_dicom(tmp_path / "x.dcm", [frame.astype(np.uint8)]))
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 0
    ds.PixelData = np.packbits(frame, bitorder="little").tobytes()
    ds.save_as(tmp_path / "x.dcm")
    np.testing.assert_array_equal(frames_of(tmp_path / "x.dcm")[0], 255 * frame)


def test_overlays_above_the_stored_bits_are_left_out(tmp_path):
    frame = moving_disc(1, SIZE)[0]
    overlaid = frame.astype(np.uint16) | (np.indices(SIZE).sum(0) % 2 << 8).astype(np.uint16)
    for syntax in (ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGLossless):
        path = write_dicom(tmp_path / "x.dcm", [overlaid], syntax=syntax)
        ds = pydicom.dcmread(path)
        ds.BitsStored, ds.HighBit = 8, 7
        ds.save_as(path)
        assert fault_of(path) == ("contradiction", "it has values with more bits than BitsStored, 8")
        ds.add_new(0x60000100, "US", 16)  # OverlayBitsAllocated, OverlayBitPosition
        ds.add_new(0x60000102, "US", 8)
        ds.save_as(path)
        np.testing.assert_array_equal(frames_of(path)[0], frame)


@pytest.mark.parametrize("high", [7, 11, 15])
def test_the_high_bit(tmp_path, high):
    frame = moving_disc(1, SIZE)[0]
    path = write_dicom(tmp_path / "x.dcm", [frame.astype(np.uint16) << (high - 7)], BitsStored=8, HighBit=high)
    np.testing.assert_array_equal(frames_of(path)[0], frame)


@pytest.mark.parametrize(
    "syntax", [JPEGLossless, JPEGLSLossless, JPEG2000Lossless, RLELossless], ids=lambda s: s.keyword
)
def test_eight_bits_in_a_stream_of_a_file_of_sixteen(tmp_path, syntax):
    frame = moving_disc(1, SIZE)[0]
    if syntax in (JPEG2000Lossless, RLELossless):
        ds = pydicom.dcmread(write_dicom(tmp_path / "x.dcm", [frame], syntax=syntax))
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16 if syntax == JPEG2000Lossless else 8, 7
        ds.HighBit = ds.BitsStored - 1
        ds.save_as(tmp_path / "x.dcm")
        path = tmp_path / "x.dcm"
    else:
        tags = {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15}
        stream = encode_frame(frame, syntax)
        path = write_streams(tmp_path / "x.dcm", [stream], SIZE, syntax=syntax, photometric="MONOCHROME2", **tags)
    np.testing.assert_array_equal(frames_of(path)[0], frame)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("bits", [9, 12, 15, 16])
@pytest.mark.parametrize("signed", [0, 1])
def test_deep_values_of_every_codec(tmp_path, syntax, bits, signed):
    ramp = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE)
    values = ramp * ((1 << bits) - 1) // ramp.max()
    stored = (values - (signed << (bits - 1))).astype(np.int16 if signed else np.uint16).view(np.uint16)
    tags = {"BitsAllocated": 16, "BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": signed}
    stream = encode_frame(stored, syntax, **tags)
    path = write_streams(tmp_path / "x.dcm", [stream], SIZE, syntax=syntax, photometric="MONOCHROME2", **tags)
    np.testing.assert_array_equal(frames_of(path)[0], np.rint(values * 255 / ((1 << bits) - 1)))


def test_deep_colours(tmp_path):
    deep = STORED.astype(np.uint16) * 257
    path = write_dicom(tmp_path / "x.dcm", [deep], photometric="RGB")
    np.testing.assert_array_equal(frames_of(path)[0], grey_of(STORED, "rgb"))
    path = write_dicom(tmp_path / "x.dcm", [STORED.astype(np.uint16)], photometric="RGB")
    assert fault_of(path)[0] == "bit_depth", "of 8 bits that say 16"
    window = Reading(every=1, window=(0, 255))
    np.testing.assert_array_equal(frames_of(path, window)[0], grey_of(STORED, "rgb"))


@st.composite
def objects(draw: st.DrawFn) -> dict[str, object]:
    """A file of any kind that keeps its values, and those values."""
    kind = draw(st.sampled_from(["grey", "inverted", "colour", "ybr"]))
    bits = 8 if kind in ("colour", "ybr") else draw(st.sampled_from([8, 10, 12, 16]))
    syntax = draw(st.sampled_from([*NATIVE, RLELossless, JPEGLossless, JPEGLSLossless, JPEG2000Lossless]))
    shape = (draw(st.integers(1, 4)), draw(st.integers(32, 40)), draw(st.integers(32, 40)))
    if syntax == JPEGLossless and shape[1] % 2 and shape[2] % 2:
        shape = (*shape[:2], shape[2] + 1)  # GDCM encodes no frame of an odd number of bytes
    # Smooth, for encoders fail on noise; from the least to the most that can be stored.
    coarse = np.random.default_rng(draw(st.integers(0, 99))).uniform(0, 1, (shape[0], 5, 5, 3))
    fine = np.stack([cv2.resize(frame, shape[:0:-1], interpolation=cv2.INTER_LINEAR) for frame in coarse])
    low, high = fine.min(axis=(1, 2), keepdims=True), fine.max(axis=(1, 2), keepdims=True)
    values = np.rint((fine - low) / (high - low) * ((1 << bits) - 1)).astype(int)
    return {
        "kind": kind,
        "bits": bits,
        "syntax": syntax,
        "values": values if kind in ("colour", "ybr") else values[..., 0],
        "planar": draw(st.integers(0, 1)) if syntax in NATIVE else 0,
        "announce": draw(st.booleans()),
        "preamble": draw(st.booleans()),
        "regions": draw(st.sampled_from(["none", "whole", "two", "unlike", "outside"])),
    }


def regions_of(kind: str, rows: int, columns: int) -> tuple[list[pydicom.Dataset], float]:
    """Regions, and the size of a pixel that they give."""
    left = region_item(0, 0, columns // 2 - 1, rows - 1)
    right = (columns // 2, 0, columns - 1, rows - 1)
    return {
        "none": ([], np.nan),
        "whole": ([region_item(0, 0, columns - 1, rows - 1)], 0.5),
        "two": ([left, region_item(*right)], 0.5),
        "unlike": ([left, region_item(*right, PhysicalDeltaX=0.06, PhysicalDeltaY=0.06)], np.nan),
        "outside": ([region_item(0, 0, columns + 1, rows - 1)], np.nan),
    }[kind]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=objects())
def test_files_of_any_kind_that_keeps_values(tmp_path, drawn):
    values, syntax, bits = drawn["values"], drawn["syntax"], drawn["bits"]
    stored = values.astype(np.uint8 if bits == 8 else np.uint16)
    tag = {"grey": "MONOCHROME2", "inverted": "MONOCHROME1", "colour": "RGB", "ybr": "YBR_FULL"}[drawn["kind"]]
    regions, pixel_mm = regions_of(drawn["regions"], *values.shape[1:3])
    tags = {"BitsStored": bits, "HighBit": bits - 1, "PhotometricInterpretation": tag}
    tags["SequenceOfUltrasoundRegions"] = regions
    if syntax in NATIVE or syntax in (RLELossless, JPEG2000Lossless):
        named = "RGB" if values.ndim == 4 else "MONOCHROME2"
        path = write_dicom(tmp_path / "x.dcm", stored, syntax=syntax, photometric=named, **tags)
    else:
        streams = [encode_frame(frame, syntax, "YBR_FULL" if values.ndim == 4 else "MONOCHROME2") for frame in stored]
        tags |= {"BitsAllocated": 8 * stored.itemsize}
        path = write_streams(tmp_path / "x.dcm", streams, values.shape[1:3], syntax=syntax, photometric=tag, **tags)
    ds = pydicom.dcmread(path)
    if drawn["planar"] and values.ndim == 4:
        ds.PixelData = np.ascontiguousarray(stored.transpose(0, 3, 1, 2)).tobytes()
        ds.PlanarConfiguration = 1
    if drawn["announce"]:
        ds.NumberOfFrames = len(values)
    elif "NumberOfFrames" in ds:
        del ds.NumberOfFrames
    ds.save_as(path)
    if not drawn["preamble"]:
        path.write_bytes(path.read_bytes()[132:])
    clip = open_dicom(path, ALL)
    found = np.stack([picture.image for picture in clip.frames()])
    if values.ndim == 4:
        expected = np.stack([grey_of(frame, "rgb" if tag == "RGB" else "ybr") for frame in stored])
        assert np.abs(found.astype(int) - expected).max() <= 2
    else:
        expected = np.rint(values * 255 / ((1 << bits) - 1))
        np.testing.assert_array_equal(found, 255 - expected if tag == "MONOCHROME1" else expected)
    assert clip.pixel_mm == pytest.approx(pixel_mm, nan_ok=True)
    assert ("miscounted" in clip.remarks) == (len(values) > 1 and not drawn["announce"])
    assert bool(clip.region) == (drawn["regions"] not in ("none", "outside"))
