"""Files as on a researcher's disk: pictures, clips and DICOM, made for tests."""

import copy
import functools
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import gdcm
import numpy as np
import pydicom
from jaxtyping import UInt8
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import compress, set_pixel_data
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    MPEG4HP41,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    generate_uid,
)

from tests.helpers.frames import speckle

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
LOSSLESS = (*NATIVE, RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)
LOSSY = {JPEGBaseline8Bit: 4, JPEGLSNearLossless: 4, MPEG4HP41: 12}
"""Syntax -> the mean error of a grey value that it may make, in levels."""

_GDCM = {
    JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
    JPEGLSNearLossless: gdcm.TransferSyntax.JPEGLSNearLossless,
}

_ENCODERS = {RLELossless: "pydicom", JPEG2000Lossless: "pylibjpeg"}
"""Not GDCM, which ends the process on noise that run lengths make longer."""


def draw_files(folder: Path, *names: str) -> Path:
    """Write a picture of its own for each name, and return the folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), speckle(name))
    return folder


def moving_disc(count: int, size: tuple[int, int] = (48, 64), seed: int = 0) -> UInt8[np.ndarray, "n h w"]:
    """Return grey frames, smooth enough for every codec, of which no two are alike."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    frames = [
        np.sin(columns / 7 + n / 5 + phase[0]) + np.sin(rows / 9 - n / 3 + phase[1]) + np.sin(n / 2 + phase[2])
        for n in range(count)
    ]
    return np.rint(128 + 35 * np.array(frames)).astype(np.uint8)


def write_dicom(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    syntax: UID = ExplicitVRLittleEndian,
    patient: str = "p1",
    study: str = "1.2.3",
    region: tuple[int, int, int, int] | Literal["whole"] | None = "whole",
    photometric: str = "MONOCHROME2",
    **tags: Any,
) -> Path:
    """Write an ultrasound object of these frames; `region` is x0, y0, x1, y1, the last inside, or all of it."""
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.Modality, ds.PatientID, ds.StudyInstanceUID = "US", patient, study
    if region == "whole":
        region = (0, 0, frames[0].shape[1] - 1, frames[0].shape[0] - 1)
    if region is not None:
        ds.SequenceOfUltrasoundRegions = DicomSequence([region_item(*region)])
    _set_pixels(ds, np.stack(frames), syntax, photometric)
    for name, value in tags.items():
        setattr(ds, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_streams(
    path: Path, streams: Sequence[bytes], size: tuple[int, int], *, syntax: UID, photometric: str, **tags: Any
) -> Path:
    """Write an ultrasound object of compressed frames, each in an item, and of tags that need not fit them."""
    samples = 1 if photometric in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR") else 3
    ds = copy.deepcopy(_blank((*size, samples)[: 3 if samples == 3 else 2]))
    ds.PhotometricInterpretation = photometric
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate(list(streams))
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds.NumberOfFrames = len(streams)
    for name, value in tags.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


@functools.cache
def _blank(shape: tuple[int, ...]) -> pydicom.Dataset:
    with tempfile.TemporaryDirectory() as folder:
        return pydicom.dcmread(io.BytesIO(write_dicom(Path(folder, "x.dcm"), [np.zeros(shape, np.uint8)]).read_bytes()))


def region_item(x0: int, y0: int, x1: int, y1: int, **tags: Any) -> pydicom.Dataset:
    """Return an item of SequenceOfUltrasoundRegions, of pixels of 0.05 cm."""
    item = pydicom.Dataset()
    item.RegionSpatialFormat, item.RegionDataType = 1, 1
    item.RegionLocationMinX0, item.RegionLocationMinY0 = x0, y0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = x1, y1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX = item.PhysicalDeltaY = 0.05
    for name, value in tags.items():
        setattr(item, name, value)
    return item


def _set_pixels(ds: pydicom.Dataset, frames: np.ndarray, syntax: UID, photometric: str) -> None:
    bits = 8 * frames.dtype.itemsize
    colour = frames.ndim == 4
    values = frames if len(frames) > 1 else frames[0]
    set_pixel_data(ds, values, "RGB" if colour else "MONOCHROME2", bits)
    ds.PhotometricInterpretation = photometric
    if syntax in NATIVE:
        ds.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian and bits == 16:
            ds.PixelData = frames.astype(frames.dtype.newbyteorder(">")).tobytes()
    elif syntax in (RLELossless, JPEG2000Lossless):
        compress(ds, syntax, generate_instance_uid=False, encoding_plugin=_ENCODERS[syntax])
    else:
        encoded = (
            [write_video(None, frames)] if syntax == MPEG4HP41 else [encode_frame(frame, syntax) for frame in frames]
        )
        ds.PixelData = encapsulate(encoded)
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = syntax


def encode_frame(frame: np.ndarray, syntax: UID, photometric: str = "MONOCHROME2", **tags: Any) -> bytes:
    """A compressed frame, whose samples are those of the array, whatever they are called.

    `tags` of depth and sign are those of the values; of a frame of 8 bits there need be none.
    """
    if syntax == JPEGBaseline8Bit:
        return cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    if syntax in (RLELossless, JPEG2000Lossless):
        with tempfile.TemporaryDirectory() as folder:
            ds = pydicom.dcmread(write_dicom(Path(folder, "x.dcm"), [frame], photometric=photometric, **tags))
            compress(ds, syntax, generate_instance_uid=False, encoding_plugin=_ENCODERS[syntax])
            return next(generate_frames(ds.PixelData, number_of_frames=1))
    # By way of files, as gdcm's own examples do: images made in Python are freed twice.
    with tempfile.TemporaryDirectory() as folder:
        native = write_dicom(Path(folder, "native.dcm"), [frame], photometric=photometric, **tags)
        encoded = Path(folder, "encoded.dcm")
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(native))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(_GDCM[syntax]))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetFileName(str(encoded))
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return next(generate_frames(pydicom.dcmread(encoded).PixelData, number_of_frames=1))


def write_video(path: Path | None, frames: Sequence[np.ndarray], codec: str = "libx264", **options: str) -> bytes:
    """Write a clip of 25 frames a second; without a path, return its bytes as MP4."""
    target = io.BytesIO() if path is None else str(path)
    with av.open(target, "w", format="mp4" if path is None else None) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = {"qscale": "2", "crf": "12"} | options
        stream.bit_rate = 2_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    return target.getvalue() if path is None else path.read_bytes()
