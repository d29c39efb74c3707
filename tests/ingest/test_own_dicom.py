"""DICOM: pixels in every syntax, grey values, regions and sizes; and what is refused."""

import json
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
from pydicom.uid import (
    MPEG4HP41,
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLSLossless,
    RLELossless,
)

from awcl_jax.ingest.command import main
from awcl_jax.ingest.own import dicom
from awcl_jax.ingest.own.dicom import is_dicom, open_dicom, read_ids
from awcl_jax.ingest.own.items import BadFileError, Reading
from awcl_jax.ingest.own.region import kept_part
from tests.helpers.own_files import (
    LOSSLESS,
    LOSSY,
    NATIVE,
    encode_frame,
    moving_disc,
    region_item,
    write_dicom,
    write_streams,
)

ALL = Reading(every=1)


def frames_of(path: Path, reading: Reading = ALL) -> np.ndarray:
    return np.stack([picture.image for picture in open_dicom(path, reading).frames()])


def kind_of(path: Path, reading: Reading = ALL) -> str:
    with pytest.raises(BadFileError) as error:
        frames_of(path, reading)
    assert error.value.__cause__ is None, "what pydicom says may hold a value"
    return error.value.kind


def test_how_pixels_are_packed_is_known_by_the_header(tmp_path):
    (tmp_path / "empty.dcm").touch()
    packings = {
        "MR_small": "none",
        "MR_small_RLE": "rle",
        "MR_small_jp2klossless": "jpeg2000",
        "MR_small_jpeg_ls_lossless": "other",
    }
    for name, packing in packings.items():
        assert dicom.packing_of(Path(get_testdata_file(f"{name}.dcm"))) == packing
    assert dicom.packing_of(tmp_path / "empty.dcm") == "other"


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
    "693_J2KI.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_dcmtk_+eb+cy+np.dcm",
    "SC_rgb_dcmtk_+eb+cy+s4.dcm",
    "SC_rgb_rle_2frame.dcm",
    "SC_rgb_rle_16bit.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "image_dfl.dcm",
]
DEEP = {"JPEG2000.dcm": (-30, 245), "CT_small.dcm": (-896, 1167)}
"""Files of 16 bits that say nothing on how to show them -> their ends, by the modality."""


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


@pytest.mark.parametrize("name", DEEP)
def test_what_would_lose_most_of_its_greys_needs_a_window(tmp_path, name):
    path = as_ultrasound(name, tmp_path / name)
    assert kind_of(path) == "bit_depth"
    low, high = DEEP[name]
    ds = pydicom.dcmread(path)
    values = apply_modality_lut(ds.pixel_array, ds)
    assert (values.min(), values.max()) == (low, high)
    expected = np.rint((values - low) / (high - low) * 255)
    np.testing.assert_allclose(frames_of(path, Reading(every=1, window=(low, high)))[0], expected, atol=0.51)


def test_region_size_and_maker(tmp_path):
    region = [
        region_item(0, 0, 60, 5, RegionSpatialFormat=3, PhysicalDeltaX=9.0, PhysicalDeltaY=9.0),  # a spectrum
        region_item(10, 6, 29, 25, PhysicalDeltaX=0.025, PhysicalDeltaY=0.025),
        region_item(30, 6, 64, 47, PhysicalDeltaX=-0.025, PhysicalDeltaY=0.025),  # x1 is the first column outside
    ]
    tags = {"SequenceOfUltrasoundRegions": region, "Manufacturer": "GE Medical Systems", "PixelSpacing": [7, 7]}
    clip = open_dicom(write_dicom(tmp_path / "x.dcm", moving_disc(1), **tags), ALL)
    assert clip.region == ((10, 6, 30, 26), (30, 6, 64, 48))
    assert clip.pixel_mm == pytest.approx(0.25)
    assert clip.machine == "GE"
    assert not clip.remarks


REGIONS_THAT_LEAVE = {
    "two pixels to the right": [region_item(0, 0, 65, 47)],
    "two pixels below": [region_item(0, 0, 63, 49)],
    "one beside one that stays": [region_item(0, 0, 20, 20), region_item(90, 90, 99, 99)],
    "a graph beside one that stays": [region_item(0, 0, 20, 20), region_item(0, 30, 99, 40, RegionSpatialFormat=4)],
}


@pytest.mark.parametrize("regions", REGIONS_THAT_LEAVE.values(), ids=REGIONS_THAT_LEAVE)
def test_regions_that_leave_the_picture_are_of_another_picture(tmp_path, regions):
    tags = {"SequenceOfUltrasoundRegions": regions, "PixelSpacing": [7, 7]}
    clip = open_dicom(write_dicom(tmp_path / "x.dcm", moving_disc(1), **tags), ALL)
    assert (clip.region, clip.remarks) == ((), {"unscaled"})
    assert np.isnan(clip.pixel_mm)
    with pytest.raises(BadFileError) as error:
        kept_part(clip, "tag", (48, 64))
    assert (error.value.kind, error.value.detail) == ("no_region", "its regions extend beyond the picture")


@pytest.mark.parametrize("name", ["examples_ybr_color.dcm", "examples_palette.dcm"])
def test_clips_that_were_made_smaller_than_their_regions(name):
    """Both were: a clip of 640 x 480 pixels was halved, a picture of 800 x 600 was cut."""
    clip = open_dicom(Path(get_testdata_file(name)), ALL)
    assert clip.region_fault
    assert np.isnan(clip.pixel_mm)
    assert len(list(clip.frames())) in (1, 30)


NAN = np.nan


def two_regions(**tags) -> list[pydicom.Dataset]:
    return [region_item(0, 0, 30, 47), region_item(32, 0, 63, 47, **tags)]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"PixelSpacing": [0.3, 0.3]}, 0.3),
        ({"PixelSpacing": [0.3, 0.6]}, NAN),
        ({"PixelSpacing": [0, 0]}, NAN),
        ({"PixelSpacing": ""}, NAN),
        ({}, NAN),
        ({"SequenceOfUltrasoundRegions": [region_item(0, 0, 9, 9)], "PixelSpacing": [7, 7]}, 0.5),
        ({"SequenceOfUltrasoundRegions": [region_item(0, 0, 9, 9, PhysicalUnitsXDirection=4)]}, NAN),
        ({"SequenceOfUltrasoundRegions": [region_item(0, 0, 9, 9, PhysicalDeltaY=0.07)]}, NAN),
        (
            {"SequenceOfUltrasoundRegions": [region_item(0, 0, 9, 9, PhysicalDeltaY=0.07)], "PixelSpacing": [1, 1]},
            np.nan,
        ),
        ({"SequenceOfUltrasoundRegions": two_regions()}, 0.5),
        ({"SequenceOfUltrasoundRegions": two_regions(PhysicalDeltaX=0.1, PhysicalDeltaY=0.1)}, NAN),
        ({"SequenceOfUltrasoundRegions": two_regions(PhysicalUnitsXDirection=4), "PixelSpacing": [1, 1]}, NAN),
        ({"SequenceOfUltrasoundRegions": two_regions(RegionSpatialFormat=2, PhysicalDeltaX=7)}, 0.5),
    ],
)
def test_pixel_size(tmp_path, tags, expected):
    clip = open_dicom(write_dicom(tmp_path / "x.dcm", moving_disc(1), region=None, **tags), ALL)
    assert clip.pixel_mm == pytest.approx(expected, nan_ok=True)
    assert clip.remarks == ({"unscaled"} if np.isnan(expected) and "SequenceOfUltrasoundRegions" in tags else set())


@pytest.mark.parametrize("ends", [(9, 9, 0, 0), (5, 5, 5, 40), (0, 0, 0, 0)])
def test_regions_without_an_area_are_none(tmp_path, ends):
    path = write_dicom(tmp_path / "x.dcm", moving_disc(1), SequenceOfUltrasoundRegions=[region_item(*ends)])
    clip = open_dicom(path, ALL)
    assert (clip.region, clip.region_fault, clip.remarks) == ((), "", set())
    clip = open_dicom(write_dicom(tmp_path / "x.dcm", moving_disc(1), SequenceOfUltrasoundRegions=two_regions()), ALL)
    assert clip.region == ((0, 0, 31, 48), (32, 0, 64, 48))


def test_a_region_without_a_scale_leaves_it_to_the_spacing(tmp_path):
    silent = region_item(0, 0, 9, 9, PhysicalUnitsXDirection=0, PhysicalUnitsYDirection=0)
    tags = {"SequenceOfUltrasoundRegions": [silent], "PixelSpacing": [0.3, 0.3]}
    assert open_dicom(write_dicom(tmp_path / "x.dcm", moving_disc(1), **tags), ALL).pixel_mm == pytest.approx(0.3)


CODECS = (RLELossless, JPEGLossless, JPEGLSLossless, JPEG2000Lossless, JPEGBaseline8Bit)


def fault_of(path: Path) -> tuple[str, str]:
    with pytest.raises(BadFileError) as error:
        frames_of(path)
    return error.value.kind, error.value.detail


def assert_frames(path: Path, frames: np.ndarray, *, remarks: set[str]) -> None:
    clip = open_dicom(path, ALL)
    found = np.stack([picture.image for picture in clip.frames()])
    assert np.abs(found.astype(int) - frames).mean() < 2
    assert [np.abs(frames.astype(int) - image).mean(axis=(1, 2)).argmin() for image in found] == list(
        range(len(frames))
    )
    assert clip.remarks == remarks


@pytest.mark.parametrize("syntax", [*NATIVE, *CODECS], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("announced", [None, 1, 3, 5, 7])
def test_frames_are_held_against_their_number(tmp_path, syntax, announced):
    frames = moving_disc(5)
    path = write_dicom(tmp_path / "x.dcm", frames, syntax=syntax)
    ds = pydicom.dcmread(path)
    ds.NumberOfFrames = announced
    if announced is None:
        del ds.NumberOfFrames
    ds.save_as(path)
    if announced == 7:
        assert fault_of(path) == ("cut_short", "5 complete frame(s), but NumberOfFrames is 7")
    else:
        assert_frames(path, frames, remarks=set() if announced == 5 else {"miscounted"})


def test_bytes_behind_the_last_frame_are_no_frame(tmp_path):
    for size, padding in (((48, 64), b"\0" * 100), ((1, 1), b"\0"), ((3, 5), b"\0")):
        frame = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)
        path = write_dicom(tmp_path / "x.dcm", [frame])
        ds = pydicom.dcmread(path)
        ds.PixelData = frame.tobytes() + padding
        ds.save_as(path)
        clip = open_dicom(path, ALL)
        assert [picture.image.tolist() for picture in clip.frames()] == [frame.tolist()]
        assert not clip.remarks


@pytest.mark.parametrize("syntax", CODECS, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("end", ["", "zeros", "half", "other"])
@pytest.mark.parametrize("announced", [True, False])
def test_items_that_nothing_closes(tmp_path, syntax, end, announced):
    frames = moving_disc(5)
    path = write_dicom(tmp_path / "x.dcm", frames, syntax=syntax)
    data = path.read_bytes()
    assert data[-8:] == b"\xfe\xff\xdd\xe0\0\0\0\0"
    if not announced:
        at = data.index(b"\x28\0\x08\0IS")
        data = data[:at] + data[at + 10 :]
    path.write_bytes(data[:-8] + {"": b"", "zeros": b"\0" * 8, "half": data[-8:-4], "other": b"what is it"}[end])
    if end == "other" and not announced:
        assert fault_of(path)[0] == "cut_short", "there may have been more"
        return
    assert_frames(path, frames, remarks=set() if announced else {"miscounted"})
    path.write_bytes(data[:-20])  # within the last item
    assert fault_of(path)[0] == "cut_short"


@pytest.mark.parametrize("syntax", CODECS, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("announced", [5, None])
def test_frames_in_several_items_each(tmp_path, syntax, table, announced):
    frames = moving_disc(5)
    streams = [encode_frame(frame, syntax) for frame in frames]
    path = write_streams(tmp_path / "x.dcm", streams, (48, 64), syntax=syntax, photometric="MONOCHROME2")
    ds = pydicom.dcmread(path)
    ds.PixelData = encapsulate(streams, fragments_per_frame=3, has_bot=table)
    ds.NumberOfFrames = announced
    ds.save_as(path)
    assert_frames(path, frames, remarks=set() if announced else {"miscounted"})


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLSLossless, JPEG2000Lossless], ids=lambda syntax: syntax.name)
def test_frames_behind_each_other_in_one_item(tmp_path, syntax):
    frames = moving_disc(5)
    stream = b"".join(encode_frame(frame, syntax) + b"\0" * (n % 2) for n, frame in enumerate(frames))
    for announced in (5, None):
        path = write_streams(tmp_path / "x.dcm", [stream], (48, 64), syntax=syntax, photometric="MONOCHROME2")
        ds = pydicom.dcmread(path)
        ds.NumberOfFrames = announced
        ds.save_as(path)
        assert_frames(path, frames, remarks=set() if announced else {"miscounted"})


def test_a_table_of_offsets_is_not_needed(tmp_path):
    frames = moving_disc(5)
    path = write_dicom(tmp_path / "x.dcm", frames, syntax=JPEGBaseline8Bit)
    data = path.read_bytes()
    at = data.index(b"\xe0\x7f\x10\0OB") + 12
    length = int.from_bytes(data[at + 4 : at + 8], "little")
    path.write_bytes(data[:at] + data[at + 8 + length :])  # not even an empty one
    assert_frames(path, frames, remarks=set())
    broken = np.arange(5, dtype="<u4")[::-1].tobytes()
    path.write_bytes(
        data[:at] + data[at : at + 4] + len(broken).to_bytes(4, "little") + broken + data[at + 8 + length :]
    )
    assert_frames(path, frames, remarks=set())


@pytest.mark.parametrize("announced", [5, 12])
def test_frames_of_a_video_are_held_against_their_number(tmp_path, announced):
    path = write_dicom(tmp_path / "x.dcm", moving_disc(5), syntax=MPEG4HP41, NumberOfFrames=announced)
    clip = open_dicom(path, ALL)
    assert len(list(clip.frames())) == 5
    assert clip.remarks == (set() if announced == 5 else {"miscounted"})


def test_streams_that_are_not_of_their_transfer_syntax(tmp_path):
    frame = moving_disc(1)[0]
    for said, syntax in (
        (JPEGBaseline8Bit, JPEGLossless),
        (JPEG2000Lossless, JPEGLSLossless),
        (RLELossless, JPEGLossless),
    ):
        stream = encode_frame(frame, syntax)
        path = write_streams(tmp_path / "x.dcm", [stream], (48, 64), syntax=said, photometric="MONOCHROME2")
        np.testing.assert_array_equal(frames_of(path)[0], frame)
    tags = {"Rows": 64, "Columns": 48}
    path = write_streams(tmp_path / "x.dcm", [stream], (48, 64), syntax=said, photometric="MONOCHROME2", **tags)
    assert fault_of(path) == ("contradiction", "its stream differs in size from Rows and Columns")
    path = write_streams(tmp_path / "x.dcm", [b"no stream"], (48, 64), syntax=said, photometric="MONOCHROME2")
    assert fault_of(path) == ("cut_short", "it does not begin as a compressed stream")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGBaseline8Bit], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize(
    "name", ["PlanarConfiguration", "SamplesPerPixel", "BitsStored", "HighBit", "PixelRepresentation"]
)
def test_what_may_be_missing(tmp_path, syntax, name):
    grey = moving_disc(2)
    for frames, photometric in ((grey, "MONOCHROME2"), (np.stack([grey] * 3, -1), "rgb ")):
        with pydicom.config.disable_value_validation():
            path = write_dicom(tmp_path / "x.dcm", frames, syntax=syntax, photometric=photometric)
            ds = pydicom.dcmread(path)
            if name in ds:
                del ds[name]
            ds.save_as(path)
        assert np.abs(frames_of(path).astype(int) - grey).mean() < 1


@pytest.mark.parametrize("name", ["PhotometricInterpretation", "BitsAllocated", "Rows", "Columns"])
def test_what_must_not_be_missing_is_named(tmp_path, name):
    path = write_dicom(tmp_path / "x.dcm", moving_disc(2))
    ds = pydicom.dcmread(path)
    del ds[name]
    ds.save_as(path)
    assert fault_of(path) == ("bad_tag", f"{name} is missing")


@pytest.mark.parametrize(
    ("name", "value"),
    [("BitsAllocated", 12), ("BitsStored", 9), ("HighBit", 3), ("SamplesPerPixel", 4), ("PlanarConfiguration", 2)],
)
def test_values_that_a_tag_cannot_have_are_named(tmp_path, name, value):
    path = write_dicom(tmp_path / "x.dcm", moving_disc(2), **{name: value})
    assert fault_of(path) == ("bad_tag", f"{name} has an unknown value")


def without(path: Path, *, preamble: bool = False, meta: bool = False) -> Path:
    """The file without its preamble, or without the tags of group 2, or without both."""
    data = path.read_bytes()
    end = 144 + int.from_bytes(data[140:144], "little")
    path.write_bytes((b"" if preamble else data[:132]) + data[end if meta else 132 :])
    return path


@pytest.mark.parametrize("syntax", [*NATIVE[:3], *CODECS], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("lacks", ["preamble", "meta", "both", "syntax"])
def test_what_a_file_begins_with_may_be_missing(tmp_path, syntax, lacks):
    frames = moving_disc(2)
    path = write_dicom(tmp_path / "x", frames, syntax=syntax)
    if lacks == "syntax":
        ds = pydicom.dcmread(path)
        del ds.file_meta.TransferSyntaxUID
        encoding = {"implicit_vr": syntax == NATIVE[0], "little_endian": syntax != NATIVE[2]}
        pydicom.dcmwrite(path, ds, **encoding)
    else:
        without(path, preamble=lacks != "meta", meta=lacks != "preamble")
    assert is_dicom(path)
    assert read_ids(path) == ("p1", "1.2.3")
    assert_frames(path, frames, remarks=set())


def test_deflated_files_without_a_preamble_are_limited_too(tmp_path, monkeypatch):
    path = without(write_dicom(tmp_path / "x", moving_disc(2), syntax=NATIVE[3]), preamble=True)
    assert_frames(path, moving_disc(2), remarks=set())
    monkeypatch.setattr(dicom, "_INFLATED", 2000)
    assert kind_of(path) == "too_large"


def test_ultrasound_is_told_by_its_class_where_it_has_no_modality(tmp_path):
    path = write_dicom(tmp_path / "x.dcm", moving_disc(1), Modality="")
    assert read_ids(path) == ("p1", "1.2.3")
    for tags, detail in (
        ({"Modality": "", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "Modality is missing"),
        ({"Modality": "CT"}, ""),
    ):
        with pytest.raises(BadFileError) as error:
            read_ids(write_dicom(tmp_path / "x.dcm", moving_disc(1), **tags))
        assert (error.value.kind, error.value.detail) == ("no_ultrasound", detail)


def test_an_icon_is_not_the_picture(tmp_path):
    icon = pydicom.dcmread(write_dicom(tmp_path / "icon.dcm", moving_disc(1, (8, 8), seed=9)))
    frames = moving_disc(2)
    for syntax in (*NATIVE, JPEGBaseline8Bit):
        for undefined in (True, False):
            item = pydicom.Dataset()
            for name in (
                "Rows",
                "Columns",
                "SamplesPerPixel",
                "PhotometricInterpretation",
                "BitsAllocated",
                "PixelData",
            ):
                item[name] = icon[name]
            path = write_dicom(tmp_path / "x.dcm", frames, syntax=syntax, IconImageSequence=[item])
            ds = pydicom.dcmread(path)
            ds["IconImageSequence"].is_undefined_length = undefined
            ds.save_as(path)
            assert_frames(path, frames, remarks=set())
            assert "(0088,0200) IconImageSequence" in open_dicom(path, ALL).dropped


def test_an_enhanced_volume(tmp_path):
    """Its spacing, slope and window are in macros that all frames share; it has no regions."""
    spacing, transformation, window = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    spacing.PixelSpacing, spacing.SliceThickness = [0.4, 0.4], 1
    transformation.RescaleSlope, transformation.RescaleIntercept = 2, -100
    window.WindowCenter, window.WindowWidth, window.WindowCenterWidthExplanation = 410.5, 1021, "x"
    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence = [spacing]
    shared.PixelValueTransformationSequence = [transformation]
    shared.FrameVOILUTSequence = [window]
    deep = moving_disc(3).astype(np.uint16)
    path = write_dicom(tmp_path / "x.dcm", deep, region=None, SharedFunctionalGroupsSequence=[shared])
    clip = open_dicom(path, ALL)
    assert (clip.pixel_mm, clip.region, clip.remarks) == (pytest.approx(0.4), (), set())
    expected = np.clip((2 * deep.astype(float) - 100 - 410) / 1020 + 0.5, 0, 1) * 255
    np.testing.assert_allclose([picture.image for picture in clip.frames()], expected, atol=0.51)
    assert "(0028,1055) WindowCenterWidthExplanation" in clip.dropped


def test_private_tags_about_the_pixels(tmp_path):
    """As EchoPAC writes them: a copy of the clip in group 7FE1, and blocks before the pixels."""
    frames = moving_disc(2)
    ds = pydicom.dcmread(write_dicom(tmp_path / "x.dcm", frames, syntax=JPEGBaseline8Bit))
    ds.private_block(0x6003, "GEMS_Ultrasound_ImageGroup_001", create=True).add_new(0x10, "OB", b"\xff\xd8\xff\xd9" * 9)
    block = ds.private_block(0x7FE1, "GEMS_Ultrasound_MovieGroup_001", create=True)
    inner = pydicom.Dataset()
    inner.add_new(0x7FE00010, "OB", b"\0" * 8)
    block.add_new(0x01, "SQ", [inner])
    block.add_new(0x60, "OB", bytes(2_000_000))
    ds.save_as(tmp_path / "x.dcm")
    assert_frames(tmp_path / "x.dcm", frames, remarks=set())
    assert {"(7FE1,1001) private", "(7FE1,1060) private"} < set(open_dicom(tmp_path / "x.dcm", ALL).dropped)


@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("share", [0.6, 0.98])
def test_what_is_cut_short_is_refused(tmp_path, syntax, share):
    path = write_dicom(tmp_path / "x.dcm", moving_disc(6), syntax=syntax)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert kind_of(path) in ("cut_short", "no_dicom")


def test_what_a_codec_says_of_damaged_data_is_not_shown(tmp_path, capfd, caplog):
    path = write_dicom(tmp_path / "x.dcm", moving_disc(1), syntax=JPEGLossless)
    data = bytearray(path.read_bytes())
    data[-300:-296] = b"\xff" * 4
    path.write_bytes(data)
    assert kind_of(path) == "cut_short"
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


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


@pytest.fixture
def ingest(tmp_path, capsys, monkeypatch):
    """Exit status, stdout and stderr of `ingest dicom` on the files in `in`, into the folder `out`."""
    monkeypatch.setenv("AWCL_ID_KEY", "0123456789abcdef")

    def call(*flags: str) -> tuple[int, str, str]:
        status = 0
        try:
            main(["dicom", f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--workers=1", *flags])
        except SystemExit as left:
            status = left.code
        return status, *capsys.readouterr()

    return call


def test_one_id_for_all_examinations_is_noted(tmp_path, ingest):
    def write(patient: str) -> None:
        for number in range(6):
            ids = {"patient": patient.format(number // 2), "study": f"1.{number}"}
            write_dicom(tmp_path / "in" / f"{number}.dcm", moving_disc(1, seed=number), **ids)

    write("ANONYMOUS")
    status, _, said = ingest()
    assert status == 1
    assert (
        said.count(
            "One PatientID names 6 of 6 examinations. If it is not that of one patient (but ANONYMOUS, for example)"
        )
        == 1
    )
    assert "--patient_from=study or folder" in said
    assert "One PatientID" in ingest("--test_share=0", "--val_share=0")[1], "where it works, too"
    assert "One PatientID" not in "".join(map(str, ingest("--patient_from=study", "--name=other")))
    write("p{}")
    assert "One PatientID" not in "".join(map(str, ingest("--name=third", "--test_share=0", "--val_share=0")))


def test_what_is_counted_and_named_in_the_report(tmp_path, ingest):
    write_dicom(tmp_path / "in" / "1.dcm", moving_disc(5), NumberOfFrames=1)
    unlike = two_regions(PhysicalDeltaX=0.1, PhysicalDeltaY=0.1)
    write_dicom(
        tmp_path / "in" / "2.dcm", moving_disc(2, seed=1), patient="p2", study="1.2", SequenceOfUltrasoundRegions=unlike
    )
    write_dicom(tmp_path / "in" / "3.dcm", moving_disc(1), patient="p3", study="1.3", region=(0, 0, 99, 99))
    write_dicom(tmp_path / "in" / "4.dcm", moving_disc(1), patient="p4", study="1.4", BitsAllocated=12)
    write_dicom(tmp_path / "in" / "5.dcm", moving_disc(1), patient="p5", study="1.5", PhotometricInterpretation="RGB")
    flags = ("--every=1", "--near_duplicate=0", "--test_share=0", "--val_share=0", "--skip_bad", "--show_paths")
    status, printed, said = ingest(*flags)
    assert status == 0, said
    report = json.loads((tmp_path / "out" / "ingest_report.json").read_text())
    assert report["frames_by_treatment"] | {"miscounted": 5, "unscaled": 2} == report["frames_by_treatment"]
    assert {kind: skipped["numbers"] for kind, skipped in report["skipped"].items()} == {
        "no_region": [3],
        "bad_tag": [4],
        "contradiction": [5],
    }
    assert "Read 5 frame(s) of files whose number of frames differs from NumberOfFrames." in printed
    assert "Stored no pixel size for 2 frame(s)" in printed
    assert "its regions extend beyond the picture" in said
    assert "BitsAllocated has an unknown value" in said
