"""DICOM: pixels in every syntax, grey values, regions and sizes; and what is refused."""

import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_windowing, convert_color_space
from pydicom.uid import UID, JPEGLossless

from awcl_jax.ingest.own import dicom
from awcl_jax.ingest.own.dicom import is_dicom, open_dicom, read_ids
from awcl_jax.ingest.own.items import BadFileError, Reading
from tests.helpers.own_files import LOSSLESS, LOSSY, NATIVE, moving_disc, region_item, write_dicom

ALL = Reading(every=1)


def frames_of(path: Path, reading: Reading = ALL) -> np.ndarray:
    return np.stack([picture.image for picture in open_dicom(path, reading).frames()])


def kind_of(path: Path, reading: Reading = ALL) -> str:
    with pytest.raises(BadFileError) as error:
        frames_of(path, reading)
    assert error.value.__cause__ is None, "what pydicom says may hold a value"
    return error.value.kind


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("count", [1, 5])
def test_lossless_syntaxes(tmp_path, syntax, count):
    frames = moving_disc(count)
    np.testing.assert_array_equal(frames_of(write_dicom(tmp_path / "x.dcm", frames, syntax=syntax)), frames)


@pytest.mark.parametrize("syntax", LOSSY, ids=lambda syntax: syntax.name)
def test_lossy_syntaxes(tmp_path, syntax):
    frames = moving_disc(5)
    found = frames_of(write_dicom(tmp_path / "x.dcm", frames, syntax=syntax))
    assert np.abs(found.astype(int) - frames).mean() < LOSSY[syntax]
    assert [np.abs(frames.astype(int) - image).mean(axis=(1, 2)).argmin() for image in found] == list(range(5))


@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY], ids=lambda syntax: syntax.name)
def test_real_frames_in_every_syntax(tmp_path, real_data, syntax):
    files = sorted((real_data / "FETAL_PLANES_DB" / "Images").glob("*.png"))[:3]
    frames = np.stack([np.asarray(Image.open(file).convert("L").resize((256, 256))) for file in files])
    found = frames_of(write_dicom(tmp_path / "x.dcm", frames, syntax=syntax))
    if syntax in LOSSLESS:
        np.testing.assert_array_equal(found, frames)
    differences = np.abs(found[:, None].astype(int) - frames[None]).mean(axis=(2, 3))
    assert differences.argmin(axis=1).tolist() == [0, 1, 2]
    assert differences.diagonal().max() < 6


@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY], ids=lambda syntax: syntax.name)
def test_every_nth_frame_from_the_first(tmp_path, syntax):
    frames = moving_disc(7)
    found = frames_of(write_dicom(tmp_path / "x.dcm", frames, syntax=syntax), Reading(every=3))
    assert [np.abs(frames.astype(int) - image).mean(axis=(1, 2)).argmin() for image in found] == [0, 3, 6]


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
def test_sixteen_bits_are_windowed(tmp_path, syntax):
    deep = moving_disc(2).astype(np.uint16) * 200
    path = write_dicom(tmp_path / "x.dcm", deep, syntax=syntax, WindowCenter=25_000, WindowWidth=30_000)
    ds = pydicom.dcmread(path)
    # pydicom gives the window as values from 0 to 65,535.
    expected = apply_windowing(deep.astype(float), ds) / 65_535 * 255
    np.testing.assert_allclose(frames_of(path), expected, atol=0.51)
    np.testing.assert_array_equal(frames_of(path, Reading(every=1, window=(0, 51_000))), moving_disc(2))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_after_the_modality(tmp_path, function):
    deep = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = write_dicom(
        tmp_path / "x.dcm",
        [deep],
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=[1500, 7],
        WindowWidth=[3000, 7],
        VOILUTFunction=function,
        BitsStored=12,
        HighBit=11,
    )
    ds = pydicom.dcmread(path)
    shown = apply_windowing(apply_modality_lut(deep, ds), ds)
    low, high = -1000, 2 * 4095 - 1000  # the range that pydicom maps to
    np.testing.assert_allclose(frames_of(path)[0], (shown - low) / (high - low) * 255, atol=0.6)


def test_without_a_window_all_values_that_can_be_stored_are_shown(tmp_path):
    deep = np.array([[0, 2048, 4095]], np.uint16)
    path = write_dicom(tmp_path / "x.dcm", [deep], BitsStored=12, HighBit=11)
    assert frames_of(path).tolist() == [[[0, 128, 255]]]
    signed = np.array([[-2048, 0, 2047]], np.int16)
    path = write_dicom(tmp_path / "y.dcm", [signed.view(np.uint16)], BitsStored=12, HighBit=11, PixelRepresentation=1)
    assert frames_of(path).tolist() == [[[0, 128, 255]]]


def test_monochrome1_is_inverted(tmp_path):
    frames = moving_disc(2)
    path = write_dicom(tmp_path / "x.dcm", frames, photometric="MONOCHROME1")
    np.testing.assert_array_equal(frames_of(path), 255 - frames)


def test_colours_become_their_luminance(tmp_path):
    grey = moving_disc(2)
    path = write_dicom(tmp_path / "grey.dcm", np.stack([grey] * 3, axis=-1), photometric="RGB")
    np.testing.assert_array_equal(frames_of(path), grey)
    assert not any(picture.colour for picture in open_dicom(path, ALL).frames())
    colour = np.stack([grey, grey // 2, 255 - grey], axis=-1)
    expected = np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in colour])
    path = write_dicom(tmp_path / "rgb.dcm", colour, photometric="RGB")
    np.testing.assert_allclose(frames_of(path).astype(int), expected, atol=1)
    assert all(picture.colour for picture in open_dicom(path, ALL).frames())
    ybr = convert_color_space(colour, "RGB", "YBR_FULL")
    path = write_dicom(tmp_path / "ybr.dcm", ybr, photometric="YBR_FULL")
    np.testing.assert_allclose(frames_of(path).astype(int), expected, atol=2)


def as_ultrasound(name: str, path: Path) -> Path:
    """A file that pydicom brings along, named ultrasound."""
    ds = pydicom.dcmread(get_testdata_file(name))
    ds.Modality = "US"
    ds.save_as(path)
    return path


PACKAGED = [
    "examples_palette.dcm",
    "examples_rgb_color.dcm",
    "examples_ybr_color.dcm",
    "examples_jpeg2k.dcm",
    "ExplVR_BigEnd.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "JPEGLSNearLossless_08.dcm",
    "JPEGLSNearLossless_16.dcm",
    "JPEG2000.dcm",
    "693_J2KI.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_dcmtk_+eb+cy+np.dcm",
    "SC_rgb_dcmtk_+eb+cy+s4.dcm",
    "SC_rgb_rle_2frame.dcm",
    "SC_rgb_rle_16bit.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "image_dfl.dcm",
    "CT_small.dcm",
]


@pytest.mark.parametrize("name", PACKAGED)
def test_files_that_pydicom_brings_along(tmp_path, name):
    path = as_ultrasound(name, tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(path)
        values = pydicom.pixels.pixel_array(ds)
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, ds)
    values = values[None] if int(ds.get("NumberOfFrames") or 1) == 1 else values
    found = frames_of(path)
    assert found.dtype == np.uint8
    if values.ndim == 4:
        colours = values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8)
        expected = np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in colours])
        np.testing.assert_allclose(found.astype(int), expected, atol=1)
        return
    # Brighter stays brighter: the order of any two pixels is kept, or lost where they become one grey value.
    stored, shown = apply_modality_lut(values, ds).astype(float).ravel(), found.ravel().astype(int)
    assert (np.diff(shown[np.argsort(stored, kind="stable")]) >= 0).all()


def test_region_size_and_maker(tmp_path):
    region = [
        region_item(0, 0, 60, 5, RegionSpatialFormat=3, PhysicalDeltaX=9.0, PhysicalDeltaY=9.0),  # a spectrum
        region_item(10, 6, 29, 25),
        region_item(30, 6, 999, 47, PhysicalDeltaX=-0.025, PhysicalDeltaY=0.025),
        region_item(90, 90, 99, 99),  # outside of the picture
    ]
    tags = {"SequenceOfUltrasoundRegions": region, "Manufacturer": "GE Medical Systems", "PixelSpacing": [7, 7]}
    clip = open_dicom(write_dicom(tmp_path / "x.dcm", moving_disc(1), **tags), ALL)
    assert clip.region == ((10, 6, 30, 26), (30, 6, 64, 48))
    assert clip.pixel_mm == pytest.approx(0.25), "of the larger one"
    assert clip.machine == "GE"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"PixelSpacing": [0.3, 0.3]}, 0.3),
        ({"PixelSpacing": [0.3, 0.6]}, np.nan),
        ({"PixelSpacing": [0, 0]}, np.nan),
        ({"PixelSpacing": ""}, np.nan),
        ({}, np.nan),
        ({"SequenceOfUltrasoundRegions": [region_item(0, 0, 9, 9)], "PixelSpacing": [7, 7]}, 0.5),
        ({"SequenceOfUltrasoundRegions": [region_item(0, 0, 9, 9, PhysicalUnitsXDirection=4)]}, np.nan),
        ({"SequenceOfUltrasoundRegions": [region_item(0, 0, 9, 9, PhysicalDeltaY=0.07)]}, np.nan),
    ],
)
def test_pixel_size(tmp_path, tags, expected):
    clip = open_dicom(write_dicom(tmp_path / "x.dcm", moving_disc(1), region=None, **tags), ALL)
    assert clip.pixel_mm == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("share", [0.6, 0.98])
def test_what_is_cut_short_is_refused(tmp_path, syntax, share):
    path = write_dicom(tmp_path / "x.dcm", moving_disc(6), syntax=syntax)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert kind_of(path) in ("cut_short", "no_dicom")


def test_what_a_codec_says_of_damaged_data_is_not_shown(tmp_path, capfd):
    path = write_dicom(tmp_path / "x.dcm", moving_disc(1), syntax=JPEGLossless)
    data = bytearray(path.read_bytes())
    data[-300:-296] = b"\xff" * 4
    path.write_bytes(data)
    assert kind_of(path) == "cut_short"
    assert capfd.readouterr() == ("", "")


def test_refused_files(tmp_path):
    frame = moving_disc(1)

    def write(**fields) -> Path:
        return write_dicom(tmp_path / "x.dcm", frame, **fields)

    assert kind_of(write(Rows=0)) == "no_pixels"
    assert kind_of(write(), Reading(max_pixels=100)) == "too_large"
    assert kind_of(write(Rows=60_000, Columns=60_000)) == "too_large"
    assert kind_of(write(NumberOfFrames=10**9)) == "cut_short"
    ds = pydicom.dcmread(write())
    del ds.PixelData
    ds.save_as(tmp_path / "x.dcm")
    assert kind_of(tmp_path / "x.dcm") == "no_pixels"
    ds = pydicom.dcmread(write())
    ds.PixelData = encapsulate([ds.PixelData])
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.94")  # pixels that lie on a server
    ds.save_as(tmp_path / "x.dcm")
    assert kind_of(tmp_path / "x.dcm") == "no_decoder"
    for name, data in (
        ("text.dcm", b"Name: no DICOM\n" * 50),
        ("empty.dcm", b""),
        ("cut.dcm", write().read_bytes()[:150]),
    ):
        (tmp_path / name).write_bytes(data)
        assert kind_of(tmp_path / name) == ("no_dicom" if data else "no_bytes")
    assert kind_of(Path(get_testdata_file("JPGExtended.dcm"))) == "no_decoder", "12 bits"
    for name in ("CT_small.dcm", "reportsi.dcm"):
        with pytest.raises(BadFileError) as error:
            read_ids(Path(get_testdata_file(name)))
        assert error.value.kind == "no_ultrasound"


def test_what_inflates_without_end_is_refused(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "x.dcm", moving_disc(1), syntax=NATIVE[3])
    frames_of(path)
    monkeypatch.setattr(dicom, "_INFLATED", 2000)
    assert kind_of(path) == "too_large"


def test_ids_and_what_is_taken_for_dicom(tmp_path):
    path = write_dicom(tmp_path / "sub" / "x", moving_disc(1), patient=" 007 ", study="1.2.3.4")
    assert read_ids(path) == ("007", "1.2.3.4")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "DICOMDIR").write_bytes(path.read_bytes())
    (tmp_path / "broken.DCM").write_text("x")
    assert [is_dicom(p) for p in (path, *(tmp_path / n for n in ("notes.txt", "DICOMDIR", "broken.DCM")))] == [
        1,
        0,
        0,
        1,
    ]


def test_deflated_files_are_as_pydicom_reads_them():
    path = Path(get_testdata_file("image_dfl.dcm"))
    data = path.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    assert zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:])[:2] == b"\x08\x00", "the dataset starts here"
