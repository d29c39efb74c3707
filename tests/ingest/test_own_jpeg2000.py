"""JPEG 2000 of 8-bit greys, which Pillow decodes as pylibjpeg does, in threads and without Python's lock."""

import io
import random

import cv2
import numpy as np
import openjpeg
import pytest
from PIL import Image
from pydicom.uid import JPEG2000Lossless

from awcl_jax.ingest.own import dicom_frames
from awcl_jax.ingest.own.codestream import read_codestream
from awcl_jax.ingest.own.dicom_frames import Layout, decode_compressed
from awcl_jax.ingest.own.items import BadFileError

SIZE = (40, 56)
SMOOTH = cv2.blur(np.random.default_rng(0).integers(0, 256, SIZE, np.uint8), (5, 5))
LAYOUT = Layout(SIZE, "MONOCHROME2", 1, False, 8, 8, 7, False, 1)
STYLES = {
    "one tile": {},
    "tiles": {"tile_size": (24, 24)},
    "three sizes": {"num_resolutions": 3},
    "layers": {"quality_layers": [20, 5, 1], "quality_mode": "rates"},
    "by components": {"progression": "CPRL", "precinct_size": (64, 64)},
}


def encoded(values: np.ndarray = SMOOTH, **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(values).save(data, "JPEG2000", no_jp2=True, **{"irreversible": False} | options)
    return data.getvalue()


@pytest.mark.parametrize("style", STYLES)
def test_integers_are_decoded_exactly(monkeypatch, style):
    stream = encoded(**STYLES[style])
    assert read_codestream(stream).exact
    monkeypatch.setattr(dicom_frames, "_decode_by_plugin", lambda *args, **options: pytest.fail("by a plugin"))
    values = decode_compressed(stream, JPEG2000Lossless, LAYOUT).values
    np.testing.assert_array_equal(values, openjpeg.decode(stream))
    if style != "layers":
        np.testing.assert_array_equal(values, SMOOTH)


def behind(marker: bytes, segment: bytes, stream: bytes) -> bytes:
    """The stream with another segment after its last segment of this kind."""
    at = stream.rindex(marker) + 2
    at += int.from_bytes(stream[at : at + 2], "big")
    return stream[:at] + segment + stream[at:]


def test_others_are_decoded_by_plugins(monkeypatch):
    whole, at = encoded(), encoded().index(b"\xff\x52")
    irreversible = encoded()[:at] + encoded()[at:].replace(b"\x04\x04\x00\x01", b"\x04\x04\x00\x00", 1)
    style = irreversible[at : at + 14]
    component = b"\xff\x53\0\x09\0\0\x05\x04\x04\0\0"
    streams = {
        "fractions": encoded(irreversible=True),
        "fractions by the header alone": irreversible,
        "a component of fractions": behind(b"\xff\x52", component, whole),
        "a tile of fractions": behind(b"\xff\x90", style, encoded(tile_size=(24, 24))),
        "a sign": whole[:42] + b"\x87" + whole[43:],
        "7 bits": whole[:42] + b"\x06" + whole[43:],
        "an offset": whole[:16] + b"\0\0\0\x04" + whole[20:],
        "colours": encoded(np.stack([SMOOTH] * 3, -1)),
        "no data": whole[: at + 8],
    }
    asked = []

    def by_plugin(data: bytes, *args: object, **options: object) -> np.ndarray:
        asked.append(data)
        return SMOOTH

    monkeypatch.setattr(dicom_frames, "_decode_by_plugin", by_plugin)
    for name, stream in streams.items():
        header = read_codestream(stream)
        assert not (header.exact and header.precision == 8), name
        layout = Layout(header.size, "MONOCHROME2", header.components, False, 8, 8, 7, False, 1)
        decode_compressed(stream, JPEG2000Lossless, layout)
    decode_compressed(whole, JPEG2000Lossless, Layout(SIZE, "MONOCHROME2", 1, False, 8, 8, 7, True, 1))
    assert asked == [*streams.values(), whole]


@pytest.mark.parametrize("threads", ["1", "3"])
def test_what_is_damaged_has_the_values_or_the_fault_of_the_plugins(monkeypatch, threads):
    monkeypatch.setenv("OPJ_NUM_THREADS", threads)
    by_pillow, found = dicom_frames._decode_by_pillow, []

    def outcome(stream: bytes) -> object:
        try:
            return decode_compressed(stream, JPEG2000Lossless, LAYOUT).values.tolist()
        except BadFileError as error:
            return error.kind, error.detail

    def noted(*args: object) -> np.ndarray:
        values = by_pillow(*args)
        found.append(values)
        return values

    def refused(*args: object) -> np.ndarray:
        raise ValueError

    rng, streams = random.Random(0), [encoded(**options) for options in STYLES.values()]
    for turn in range(300):
        stream = bytearray(rng.choice(streams))
        if turn % 3 == 0:
            del stream[rng.randrange(40, len(stream)) :]
        elif turn % 3 == 1:
            stream[rng.randrange(len(stream))] = rng.randrange(256)
        else:
            at = rng.randrange(100, len(stream))
            del stream[at : at + rng.randrange(1, 20)]
        monkeypatch.setattr(dicom_frames, "_decode_by_pillow", noted)
        seen = outcome(bytes(stream))
        monkeypatch.setattr(dicom_frames, "_decode_by_pillow", refused)
        assert seen == outcome(bytes(stream)), turn
    assert len(found) > 50
