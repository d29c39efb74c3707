"""DICOM files as grey frames. Of a file's tags, only those listed in `privacy.py` are read.

Messages from here never hold a value of a file, nor what pydicom says of one.
"""

import contextlib
import dataclasses
import importlib.util
import io
import logging
import math
import os
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

from awcl_jax.ingest.own import videos
from awcl_jax.ingest.own.grey import apply_window
from awcl_jax.ingest.own.items import BadFileError, Clip, Picture, Reading
from awcl_jax.ingest.own.paths import opened
from awcl_jax.ingest.own.privacy import HASHED_TAGS, READ_TAGS, maker_of
from awcl_jax.runtime.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.tag import BaseTag

SUFFIXES = (".dcm", ".dicom", ".ima", ".img")
_PIXELS = 0x7FE00010
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_TWO_DIMENSIONAL, _CENTIMETRES = 1, 3  # RegionSpatialFormat; PhysicalUnitsXDirection
_UNDEFINED = 0xFFFFFFFF
_INFLATED, _PIECE = 4 << 30, 1 << 20
_COLOURED = 16  # least distance of two channels; lossy compression makes smaller ones out of grey


def require_pydicom() -> None:
    """Refuse to go on without pydicom.

    Raises:
      InputError: it is not installed.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise InputError("DICOM is read by pydicom, which is not installed: pip install 'awcl_jax[dicom]'.")


def is_dicom(path: Path) -> bool:
    """Whether a file's name or its first bytes say that it is DICOM."""
    if path.name.upper() == "DICOMDIR":
        return False
    if path.name.lower().endswith(SUFFIXES):
        return True
    try:
        with opened(path) as file:
            return file.read(132)[128:] == b"DICM"
    except BadFileError:
        return False


def read_ids(path: Path) -> tuple[str, str]:
    """The patient's and the examination's id, to be hashed; empty where the file has none.

    Raises:
      BadFileError: it is no DICOM file, or not of ultrasound.
    """
    with opened(path) as file, quietly():
        header, _ = _read_header(file)
        if _text(header, "Modality") != "US":
            raise BadFileError("no_ultrasound")
        patient, study = (str(_read(header, name) or "").strip(" \0") for name in HASHED_TAGS)
    return patient, study


def open_dicom(path: Path, reading: Reading) -> Clip:
    """Open a DICOM file; of several frames, every n-th from the first.

    Raises:
      BadFileError: it is no DICOM file, holds no picture, is cut short, too large, or cannot be decoded.
    """
    with opened(path) as file, quietly():
        header, pixels = _read_header(file)
        rows, columns = (int(_number(header, name, 0)) for name in ("Rows", "Columns"))
        if pixels is None or min(rows, columns) < 1:
            raise BadFileError("no_pixels")
        if rows * columns > reading.max_pixels:
            raise BadFileError("too_large", f"{columns} x {rows}")
        end = _end_of_pixels(file, header, pixels)
        region = _regions(header, rows, columns)
        return Clip(
            frames=lambda: _frames(path, header, pixels, reading),
            region=tuple(rectangle for rectangle, _ in region),
            pixel_mm=_pixel_mm(header, region),
            machine=maker_of(_text(header, "Manufacturer")),
            dropped=tuple(sorted({*_dropped(header), *_dropped_behind(file, header, end)})),
        )


@dataclasses.dataclass(frozen=True)
class _Pixels:
    """Where a file's pixels lie: offset of their first byte, and their length or `_UNDEFINED`, which is compressed."""

    offset: int
    length: int


def _read_header(file: BinaryIO) -> "tuple[Dataset, _Pixels | None]":
    """The tags before the pixels, and where those are; None where there are none."""
    from pydicom.filereader import read_partial
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    found: list[int] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        del vr
        if tag == _PIXELS:
            found.append(length)
        return tag >= _PIXELS

    try:
        _require_inflatable(file)
        file.seek(0)
        # Large values of other tags (private copies of the whole clip) are passed over.
        header = read_partial(file, stop_when=at_pixels, defer_size=1 << 20)
        syntax = header.file_meta.TransferSyntaxUID
        if not found:
            return header, None
        if syntax == DeflatedExplicitVRLittleEndian:
            return header, _Pixels(0, found[0])
        return header, _Pixels(file.tell() + (8 if syntax.is_implicit_VR else 12), found[0])
    except BadFileError:
        raise
    except Exception:  # pydicom raises many kinds, and names values in them: none may be chained
        raise BadFileError("no_dicom") from None


def _require_inflatable(file: BinaryIO) -> None:
    """Refuse a file that would inflate to more than `_INFLATED` bytes; pydicom would do it without asking."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    meta = read_file_meta_info(file.name)
    if meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
        return
    file.seek(144 + int(meta.FileMetaInformationGroupLength))  # preamble, "DICM" and the tag that holds this length
    inflater, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while piece := inflater.unconsumed_tail or file.read(_PIECE):
        inflated += len(inflater.decompress(piece, _PIECE))
        if inflated > _INFLATED:
            raise BadFileError("too_large")


def _end_of_pixels(file: BinaryIO, header: "Dataset", pixels: _Pixels) -> int | None:
    """Where the pixels end; None in a file that is deflated.

    Raises:
      BadFileError: they end before their time; decoders would fill in what is missing.
    """
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    if header.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        return None  # zlib has seen its end
    size = file.seek(0, io.SEEK_END)
    if pixels.length != _UNDEFINED:
        if pixels.offset + pixels.length > size:
            raise BadFileError("cut_short")
        return pixels.offset + pixels.length
    file.seek(pixels.offset)
    while (head := file.read(8))[:4] == _ITEM:
        if len(head) < 8 or file.seek(int.from_bytes(head[4:], "little"), io.SEEK_CUR) > size:
            raise BadFileError("cut_short")
    if head[:4] != _END:
        raise BadFileError("cut_short")
    return file.tell()


def _frames(path: Path, header: "Dataset", pixels: _Pixels, reading: Reading) -> Iterator[Picture]:
    from pydicom import dcmread
    from pydicom.pixels import iter_pixels
    from pydicom.uid import DeflatedExplicitVRLittleEndian, MPEGTransferSyntaxes

    with quietly():
        syntax = header.file_meta.TransferSyntaxUID
        wanted = range(0, max(int(_number(header, "NumberOfFrames", 1)), 1), reading.every)
    if syntax in MPEGTransferSyntaxes:
        yield from videos.decode(_unwrap(path, pixels), reading)
        return
    decoded: Iterator[np.ndarray] | None = None
    for _ in wanted:
        with quietly(), _hushed():
            try:
                if decoded is None:
                    # pydicom reads frame by frame from a file, but inflates it only when it reads it whole.
                    source = dcmread(path) if syntax == DeflatedExplicitVRLittleEndian else path
                    decoded = iter_pixels(source, indices=wanted, decoding_plugin=_plugin(syntax))
                picture = _to_picture(next(decoded), header, reading)
            except NotImplementedError:
                raise BadFileError("no_decoder") from None
            except Exception as error:
                # GDCM reads JPEG Extended of 8 bits only.
                missing = isinstance(error, RuntimeError) and any(
                    why in str(error) for why in ("missing dependencies", "does not support")
                )
                raise BadFileError("no_decoder" if missing else "cut_short") from None
        yield picture


def _plugin(syntax: str) -> str:
    """The decoder to take; any where this one is not installed.

    GDCM knows the most syntaxes, but it ends the process on some damaged JPEG files, and others raise.
    """
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGBaseline8Bit

    wanted = "pillow" if syntax == JPEGBaseline8Bit else "pylibjpeg" if syntax in JPEG2000TransferSyntaxes else "gdcm"
    return wanted if wanted in get_decoder(syntax).available_plugins else ""


def _unwrap(path: Path, pixels: _Pixels) -> io.BytesIO:
    """The video that a file wraps: its fragments one after the other, without the first, a table of offsets."""
    stream = io.BytesIO()
    with opened(path) as file:
        file.seek(pixels.offset)
        number = 0
        while (head := file.read(8))[:4] == _ITEM:
            fragment = file.read(int.from_bytes(head[4:], "little"))
            if number:
                stream.write(fragment)
            number += 1
    stream.seek(0)
    return stream


def _to_picture(values: Shaped[np.ndarray, "..."], header: "Dataset", reading: Reading) -> Picture:
    from pydicom.pixels import apply_color_lut

    if _text(header, "PhotometricInterpretation") == "PALETTE COLOR":
        values = apply_color_lut(values, header)
        bits = 8 * values.dtype.itemsize
    else:
        bits = int(_number(header, "BitsStored", 8))
    if values.ndim == 3:
        if values.dtype != np.uint8:
            values = (values >> max(bits - 8, 0)).astype(np.uint8)
        sample = values[::4, ::4].astype(np.int16)
        coloured = bool((sample.max(axis=-1) - sample.min(axis=-1) > _COLOURED).any())
        return Picture(cv2.cvtColor(np.ascontiguousarray(values[..., :3]), cv2.COLOR_RGB2GRAY), coloured)
    grey = _to_grey(values, bits, header, reading)
    return Picture(255 - grey if _text(header, "PhotometricInterpretation") == "MONOCHROME1" else grey)


def _to_grey(
    values: Shaped[np.ndarray, "h w"], bits: int, header: "Dataset", reading: Reading
) -> UInt8[np.ndarray, "h w"]:
    """8 bits out of stored values x: y = slope x + intercept, then the window (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    The window is the user's, else the file's first, else all values that can be stored. Unsigned values of 8 bits stay
    as they are unless the user gives a window.
    """
    signed = bool(_number(header, "PixelRepresentation", 0))
    slope, intercept = _number(header, "RescaleSlope", 1), _number(header, "RescaleIntercept", 0)
    if reading.window is None and bits <= 8 and not signed and (slope, intercept) == (1, 0):
        return values.astype(np.uint8)
    scaled = slope * values.astype(np.float64) + intercept
    if reading.window is not None:
        return apply_window(scaled, reading.window)
    centre, width = _number(header, "WindowCenter", math.nan), _number(header, "WindowWidth", math.nan)
    if math.isfinite(centre) and width > 1:
        function = _text(header, "VOILUTFunction")
        if function == "SIGMOID":
            return np.rint(255 / (1 + np.exp(-4 * (scaled - centre) / width))).astype(np.uint8)
        if function != "LINEAR_EXACT":
            centre, width = centre - 0.5, width - 1
        return apply_window(scaled, (centre - width / 2, centre + width / 2))
    least = -(2 ** (bits - 1)) if signed else 0
    ends = sorted((slope * least + intercept, slope * (least + 2**bits - 1) + intercept))
    return apply_window(scaled, (ends[0], ends[1]))


def _regions(header: "Dataset", rows: int, columns: int) -> list[tuple[tuple[int, int, int, int], float]]:
    """Rectangles of two-dimensional ultrasound, x1 and y1 outside, and the edge of their pixels in millimetres."""
    found = []
    for region in _sequence(header, "SequenceOfUltrasoundRegions"):
        if _number(region, "RegionSpatialFormat", 0) != _TWO_DIMENSIONAL:
            continue  # M-mode, spectra, graphs
        names = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")
        ends = [_number(region, name, math.nan) for name in names]
        if not all(math.isfinite(end) for end in ends):
            continue
        x0, y0, x1, y1 = (int(end) for end in ends)
        rectangle = max(x0, 0), max(y0, 0), min(x1 + 1, columns), min(y1 + 1, rows)
        if rectangle[0] >= rectangle[2] or rectangle[1] >= rectangle[3]:
            continue
        units = [_number(region, name, 0) for name in ("PhysicalUnitsXDirection", "PhysicalUnitsYDirection")]
        deltas = [abs(_number(region, name, math.nan)) for name in ("PhysicalDeltaX", "PhysicalDeltaY")]
        found.append((rectangle, 10 * _edge(*deltas) if units == [_CENTIMETRES] * 2 else math.nan))
    return found


def _pixel_mm(header: "Dataset", regions: list[tuple[tuple[int, int, int, int], float]]) -> float:
    """Edge of a pixel: of the largest region that says it, else of PixelSpacing; NaN where pixels are no squares."""
    sized = [((x1 - x0) * (y1 - y0), edge) for (x0, y0, x1, y1), edge in regions if edge > 0]
    if sized:
        return max(sized)[1]
    spacing = _read(header, "PixelSpacing")
    try:
        return _edge(float(spacing[0]), float(spacing[1]))
    except (TypeError, ValueError, IndexError):
        return math.nan


def _edge(x: float, y: float) -> float:
    return (x + y) / 2 if x > 0 and math.isfinite(x) and abs(x - y) <= 0.01 * x else math.nan


def _dropped(header: "Dataset") -> Iterator[str]:
    """The tags that are not read, at the head of the file, before the pixels, and in the items that are read."""
    for dataset in (header.file_meta, header, *_sequence(header, "SequenceOfUltrasoundRegions")):
        for tag in dataset.keys():  # noqa: SIM118  items() would read the values
            yield from _unread(tag)


def _dropped_behind(file: BinaryIO, header: "Dataset", end: int | None) -> Iterator[str]:
    """The tags behind the pixels, where some machines put their own; of a deflated file they are not looked at."""
    from pydicom.filereader import data_element_generator

    if end is None:
        return
    syntax = header.file_meta.TransferSyntaxUID
    file.seek(end)
    # What lies there is not needed: where it is broken, its tags are not listed.
    with contextlib.suppress(Exception):
        rest = data_element_generator(file, syntax.is_implicit_VR, syntax.is_little_endian, defer_size=1 << 10)
        for element in rest:
            yield from _unread(element.tag)


def _unread(tag: "BaseTag") -> Iterator[str]:
    """A tag by its number and name, if it is not read; of private ones the number, for their names are free text."""
    from pydicom.datadict import keyword_for_tag

    name = "private" if tag.is_private else keyword_for_tag(tag) or "unknown"
    if name not in (*READ_TAGS, *HASHED_TAGS, "FileMetaInformationGroupLength"):
        yield f"{tag} {name}"


def _read(header: "Dataset", name: str) -> Any:
    """The value of a tag that may be read; None where it is absent or broken."""
    try:
        return header.get(name)
    except Exception:  # pydicom converts values now, and raises many kinds
        return None


def _number(header: "Dataset", name: str, otherwise: float) -> float:
    """A number, the first where there are several; `otherwise` where there is none, or one without end."""
    value = _read(header, name)
    try:
        number = float(value if isinstance(value, (str, int, float)) else value[0])
    except (TypeError, ValueError, IndexError, OverflowError):
        return otherwise
    return number if math.isfinite(number) else otherwise


def _text(header: "Dataset", name: str) -> str:
    value = _read(header, name)
    return value.strip() if isinstance(value, str) else ""


def _sequence(header: "Dataset", name: str) -> "list[Dataset]":
    value = _read(header, name)
    try:
        return list(value or ())
    except TypeError:
        return []


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """What the decoders' C code writes to the process's standard error, as GDCM's does of damaged JPEG, is lost."""
    sys.stderr.flush()
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Nothing of what pydicom and GDCM say of a file's values reaches the terminal or a log."""
    logger = logging.getLogger("pydicom")
    was = logger.disabled
    with contextlib.suppress(ImportError):
        import gdcm

        for switch in (gdcm.Trace.DebugOff, gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff):
            switch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.disabled = True
        try:
            yield
        finally:
            logger.disabled = was
