"""RLE of DICOM: what Pillow unpacks against pydicom's decoder in Python."""

import dataclasses
import struct

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder, get_encoder
from pydicom.uid import RLELossless

from awcl_jax.ingest.own import dicom_frames
from awcl_jax.ingest.own.dicom_frames import Layout, decode_compressed

RNG = np.random.default_rng(0)
GREY = Layout((7, 9), "MONOCHROME2", 1, False, 8, 8, 7, False, None)
LAYOUTS = {
    "8 bits": GREY,
    "16 bits": dataclasses.replace(GREY, allocated=16, stored=16, high=15),
    "16 bits, signed": dataclasses.replace(GREY, allocated=16, stored=16, high=15, signed=True),
    "colours": dataclasses.replace(GREY, photometric="RGB", samples=3),
    "colours of 16 bits": dataclasses.replace(GREY, photometric="RGB", samples=3, allocated=16, stored=16, high=15),
}


def options(layout):
    return {
        "rows": layout.size[0],
        "columns": layout.size[1],
        "samples_per_pixel": layout.samples,
        "photometric_interpretation": layout.photometric,
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_representation": int(layout.signed),
        "number_of_frames": 1,
        "planar_configuration": 0,
    }


def by_pydicom(data, layout):
    more = {"transfer_syntax_uid": RLELossless, "pixel_keyword": "PixelData"}
    decoder = get_decoder(RLELossless)
    values, _ = decoder.as_array(
        encapsulate([data]), index=0, raw=True, decoding_plugin="pydicom", **options(layout), **more
    )
    return values


def frame_of(layout):
    """Return values in runs and without, and their RLE by pydicom."""
    kind = np.dtype(f"{'i' if layout.signed else 'u'}{layout.allocated // 8}")
    limits = np.iinfo(kind)
    shape = (*layout.size, *([3] if layout.samples == 3 else []))
    values = RNG.integers(limits.min, limits.max, shape, kind, endpoint=True)
    values[2:5] = limits.max // 3
    encoded = get_encoder(RLELossless).encode(values, encoding_plugin="pydicom", **options(layout))
    return values, encoded


@pytest.fixture
def without_pydicom(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("decoded in Python")

    monkeypatch.setattr("pydicom.pixels.get_decoder", refuse)  # which the module imports at each call


@pytest.mark.parametrize("name", LAYOUTS)
def test_values_are_those_that_were_encoded(name, without_pydicom):
    layout = LAYOUTS[name]
    values, encoded = frame_of(layout)
    found = decode_compressed(encoded, RLELossless, layout).values
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype


def packed(*segments):
    """Return the header of RLE and its segments."""
    offsets = np.cumsum([64, *map(len, segments[:-1])])
    header = struct.pack("<16L", len(segments), *offsets, *[0] * (15 - len(segments)))
    return header + b"".join(segments)


ONE_ROW = dataclasses.replace(GREY, size=(2, 3))
# By hand: -2 (254) repeats the next byte three times, 2 copies three bytes, -128 (128) says nothing.
BY_HAND = {
    "a run and a copy": (bytes([254, 7, 2, 1, 2, 3]), [[7, 7, 7], [1, 2, 3]]),
    "a run over two rows": (bytes([251, 9]), [[9, 9, 9], [9, 9, 9]]),
    "nothing between": (bytes([254, 7, 128, 254, 8]), [[7, 7, 7], [8, 8, 8]]),
    "bytes beyond the frame": (bytes([240, 5, 3, 1, 1, 1, 1]), [[5, 5, 5], [5, 5, 5]]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_segments_by_hand(name, without_pydicom):
    segment, expected = BY_HAND[name]
    np.testing.assert_array_equal(decode_compressed(packed(segment), RLELossless, ONE_ROW).values, expected)


def test_32_bits_by_hand(without_pydicom):
    layout = dataclasses.replace(GREY, size=(1, 2), allocated=32, stored=32, high=31)
    data = packed(*(bytes([1, first, second]) for first, second in ((1, 0), (2, 0), (3, 1), (4, 2))))
    found = decode_compressed(data, RLELossless, layout).values
    np.testing.assert_array_equal(found, [[0x01020304, 0x0102]])
    np.testing.assert_array_equal(found, by_pydicom(data, layout))


def test_a_last_copy_that_is_cut_short_is_left_to_pydicom():
    # Six bytes are announced and five follow, of which the frame needs all but one.
    layout = dataclasses.replace(GREY, size=(1, 5))
    data = packed(bytes([5, 1, 2, 3, 4, 5]))
    assert dicom_frames._unpack_rle(data, layout, 1) is None
    np.testing.assert_array_equal(decode_compressed(data, RLELossless, layout).values, [[1, 2, 3, 4, 5]])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", LAYOUTS)
def test_whatever_is_damaged_pillow_takes_nothing_that_pydicom_refuses(name):
    layout = LAYOUTS[name]
    taken = 0
    for _ in range(60):
        damaged = bytearray(frame_of(layout)[1])
        for _ in range(RNG.integers(1, 3)):
            at = RNG.integers(len(damaged) + 20) % len(damaged)
            damaged[at] = RNG.integers(256)
        if RNG.random() < 0.3:
            del damaged[RNG.integers(len(damaged)) :]
        if int.from_bytes(damaged[:4], "little") != layout.samples * layout.allocated // 8:
            continue
        found = dicom_frames._unpack_rle(bytes(damaged), layout, layout.samples * layout.allocated // 8)
        if found is not None:
            taken += 1
            np.testing.assert_array_equal(found, by_pydicom(bytes(damaged), layout))
    assert taken > 5
