"""DICOM files as grey frames. Only the tags listed in `privacy.py` are read.

Messages from here never contain a value of a file, or text from pydicom about one.
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
from typing import TYPE_CHECKING, BinaryIO, Literal

from awcl_jax.ingest.own import dicom_tags, videos
from awcl_jax.ingest.own.dicom_frames import (
    Frames,
    Layout,
    Pixels,
    Samples,
    decode_compressed,
    decode_native,
    find_compressed,
    find_native,
    read,
    read_layout,
)
from awcl_jax.ingest.own.dicom_greys import Greys
from awcl_jax.ingest.own.items import BadFileError, Clip, Picture, Reading
from awcl_jax.ingest.own.paths import composed, opened
from awcl_jax.ingest.own.privacy import HASHED_TAGS, MATCHED_TAGS, READ_TAGS, maker_of
from awcl_jax.runtime.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.tag import BaseTag
    from pydicom.uid import UID

Packing = Literal["none", "rle", "jpeg2000", "other"]
"""How pixels are packed, as far as the time to decode them depends on it."""

SUFFIXES = (".dcm", ".dicom", ".ima", ".img")
_PIXELS = 0x7FE00010
_TWO_DIMENSIONAL, _CENTIMETRES = 1, 3  # RegionSpatialFormat; PhysicalUnitsXDirection
_INFLATED, _PIECE = 4 << 30, 1 << 20
_SEQUENCES = (
    "SequenceOfUltrasoundRegions",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "SharedFunctionalGroupsSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
)
"""Sequences with tags that are read."""
_PACKINGS: dict[str, Packing] = {
    "1.2.840.10008.1.2.5": "rle",
    "1.2.840.10008.1.2.4.90": "jpeg2000",
    "1.2.840.10008.1.2.4.91": "jpeg2000",
}
"""Transfer syntax -> how it packs pixels."""
_ULTRASOUND = (
    "1.2.840.10008.5.1.4.1.1.3",
    "1.2.840.10008.5.1.4.1.1.3.1",
    "1.2.840.10008.5.1.4.1.1.6",
    "1.2.840.10008.5.1.4.1.1.6.1",
    "1.2.840.10008.5.1.4.1.1.6.2",
)
"""Ultrasound classes: images and multi-frame images, retired and current, and enhanced volumes."""


def require_pydicom() -> None:
    """Check that pydicom is installed.

    Raises:
      InputError: it is not installed.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise InputError("pydicom, which reads DICOM, is not installed: pip install 'awcl_jax[dicom]'.")


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM, by its name or its first bytes."""
    if path.name.upper() == "DICOMDIR":
        return False
    if path.name.lower().endswith(SUFFIXES):
        return True
    try:
        with opened(path) as file:
            return _start(file) is not None
    except BadFileError:
        return False


def read_ids(path: Path) -> tuple[str, str]:
    """Read the ids of the patient and the examination, to be hashed; empty if the file has none.

    Raises:
      BadFileError: it is not a DICOM file, or not ultrasound.
    """
    with opened(path) as file, quietly():
        tags = _read_header(file).tags
        modality = dicom_tags.text(tags, "Modality")
        if modality != "US" and (modality or dicom_tags.text(tags, "SOPClassUID") not in _ULTRASOUND):
            raise BadFileError("no_ultrasound", "" if modality else "Modality is missing")
        patient, study = (composed(str(dicom_tags.value(tags, name) or "")).strip(" \0") for name in HASHED_TAGS)
    return patient, study


def read_instance(path: Path) -> str:
    """Read the SOPInstanceUID, to be compared with names in a table; empty if the file cannot be read or has none."""
    with contextlib.suppress(BadFileError), opened(path) as file, quietly():
        return str(dicom_tags.value(_read_header(file).tags, *MATCHED_TAGS) or "").strip(" \0")
    return ""


def packing_of(path: Path) -> Packing:
    """Return how a file's pixels are packed; `other` if it cannot be read or has none."""
    with contextlib.suppress(BadFileError), opened(path) as file, quietly():
        header = _read_header(file)
        if header.pixels is not None:
            return _PACKINGS.get(str(header.syntax), "other") if header.pixels.compressed else "none"
    return "other"


def open_dicom(path: Path, reading: Reading) -> Clip:
    """Open a DICOM file; with several frames, read every n-th from the first.

    Raises:
      BadFileError: it is not a DICOM file, has no picture, is truncated, too large, or cannot be decoded.
    """
    with opened(path) as file, quietly():
        header = _read_header(file)
        tags, pixels = header.tags, header.pixels
        if pixels is None:
            raise BadFileError("no_pixels")
        layout = read_layout(tags, compressed=pixels.compressed)
        rows, columns = layout.size
        if min(rows, columns) < 1:
            raise BadFileError("no_pixels")
        if rows * columns > reading.max_pixels:
            raise BadFileError("too_large", f"{columns} x {rows}")
        frames = _find_frames(file, header, pixels, layout)
        regions = _regions(tags, rows, columns)
        pixel_mm = _pixel_mm(tags, regions)
        remarks = set()
        if frames.count > (layout.announced or 1) and not header.is_video:
            remarks.add("miscounted")
        if math.isnan(pixel_mm) and (regions is None or any(region.scaled for region in regions)):
            remarks.add("unscaled")
        return Clip(
            frames=lambda: _frames(path, header, layout, frames, reading, remarks),
            region=tuple(region.rectangle for region in regions or ()),
            region_fault="its regions extend beyond the picture" if regions is None else "",
            pixel_mm=pixel_mm,
            machine=maker_of(dicom_tags.text(tags, "Manufacturer")),
            dropped=tuple(sorted({*_dropped(tags), *_dropped_behind(file, tags, frames.end)})),
            remarks=remarks,
        )


@dataclasses.dataclass(frozen=True)
class _Header:
    """Tags before the pixels, the place of the pixels (None if there are none), and the transfer syntax."""

    tags: "Dataset"
    pixels: Pixels | None
    syntax: "UID"

    @property
    def is_deflated(self) -> bool:
        from pydicom.uid import DeflatedExplicitVRLittleEndian

        return self.syntax == DeflatedExplicitVRLittleEndian

    @property
    def is_video(self) -> bool:
        from pydicom.uid import MPEGTransferSyntaxes

        return self.syntax in MPEGTransferSyntaxes


def _read_header(file: BinaryIO) -> _Header:
    from pydicom.filereader import read_partial

    found: list[tuple[int, str]] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag == _PIXELS:
            found.append((length, vr or "OW"))
        return tag >= _PIXELS

    try:
        start = _start(file)
        if start is None:
            raise BadFileError("no_dicom")
        _require_inflatable(file, start)
        file.seek(0)
        # Large values of other tags (private copies of the whole clip) are skipped.
        tags = read_partial(file, stop_when=at_pixels, defer_size=1 << 20, force=True)
        syntax = tags.file_meta.get("TransferSyntaxUID") or _guessed_syntax(tags)
        if not found:
            if not tags:
                raise BadFileError("no_dicom")
            return _Header(tags, None, syntax)
        ((length, vr),) = found
        header = _Header(tags, Pixels(0, length, vr), syntax)
        if header.is_deflated:
            return header
        return dataclasses.replace(
            header, pixels=Pixels(file.tell() + (8 if tags.original_encoding[0] else 12), length, vr)
        )
    except BadFileError:
        raise
    except Exception:  # pydicom raises many kinds that quote values: none may be chained
        raise BadFileError("no_dicom") from None


def _guessed_syntax(tags: "Dataset") -> "UID":
    """Return the syntax of a file that names none; compressed pixels identify themselves."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = tags.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _start(file: BinaryIO) -> int | None:
    """Return the offset of the first tag, after the preamble if there is one; None if it is not a DICOM file.

    Without a preamble, the first tag is of group 2 (file meta information) or, in either byte order, of group 8.
    """
    file.seek(0)
    head = file.read(140)
    if head[128:132] == b"DICM":
        return 132
    group, element, rest = head[:2], head[2:4], head[4:8]
    plausible = (rest[:2].isalpha() and rest[:2].isupper()) or rest[1:] == b"\0\0\0"
    is_first = (group, element) == (b"\x02\0", b"\0\0") or (group == b"\x08\0" and element[1:] == b"\0")
    is_first |= group == b"\0\x08" and element[:1] == b"\0" and rest[:2].isalpha()
    return 0 if is_first and plausible else None


def _require_inflatable(file: BinaryIO, start: int) -> None:
    """Refuse a file that would inflate to more than `_INFLATED` bytes; pydicom has no such limit."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file.seek(start)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    if "FileMetaInformationGroupLength" in meta:
        file.seek(start + 12 + int(meta.FileMetaInformationGroupLength))  # after the tag with this length
    inflater, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while piece := inflater.unconsumed_tail or file.read(_PIECE):
        inflated += len(inflater.decompress(piece, _PIECE))
        if inflated > _INFLATED:
            raise BadFileError("too_large")


def _find_frames(file: BinaryIO, header: _Header, pixels: Pixels, layout: Layout) -> Frames:
    """Find the frames; those of a video, unknown before it is decoded, count as one.

    Raises:
      BadFileError: pixels end too early, which decoders would fill in, or do not fit their tags.
    """
    if pixels.compressed:
        return find_compressed(file, pixels, None if header.is_video else layout.announced)
    if header.is_deflated:
        return dataclasses.replace(find_native(layout, pixels), end=None)  # zlib has checked its end
    if pixels.offset + pixels.length > file.seek(0, io.SEEK_END):
        raise BadFileError("cut_short")
    if header.syntax.is_encapsulated:
        raise BadFileError(
            "contradiction", "TransferSyntaxUID is for compressed pixels, but the pixels are not in items"
        )
    return find_native(layout, pixels)


def _frames(
    path: Path, header: _Header, layout: Layout, frames: Frames, reading: Reading, remarks: set[str]
) -> Iterator[Picture]:
    if header.is_video:
        yield from _video(path, frames, layout, reading, remarks)
        return
    wanted = range(0, frames.count, reading.every)
    greys = Greys(header.tags, layout, reading)
    decoded = _samples(path, header, layout, frames, wanted)
    for _ in wanted:
        # Without a codec there is no C code that writes.
        with quietly(), _hushed() if frames.ranges else contextlib.nullcontext():
            try:
                picture = greys.picture(next(decoded))
            except BadFileError as error:
                raise BadFileError(error.kind, error.detail) from None
            except NotImplementedError:
                raise BadFileError("no_decoder") from None
            except Exception:  # decoders raise many kinds that quote values
                raise BadFileError("cut_short") from None
        yield picture


def _samples(path: Path, header: _Header, layout: Layout, frames: Frames, wanted: range) -> Iterator[Samples]:
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRLittleEndian

    pixels = header.pixels
    assert pixels is not None
    with opened(path) as file:
        if frames.ranges:
            for number in wanted:
                yield decode_compressed(read(file, frames.ranges[number]), header.syntax, layout)
        elif header.is_deflated:
            # pydicom inflates a file only when it reads all of it.
            inflated = io.BytesIO(dcmread(path, force=True).PixelData)
            yield from decode_native(inflated, ExplicitVRLittleEndian, pixels, layout, frames, wanted)
        else:
            syntax = _guessed_syntax(header.tags)
            yield from decode_native(file, syntax, pixels, layout, frames, wanted)


def _video(path: Path, frames: Frames, layout: Layout, reading: Reading, remarks: set[str]) -> Iterator[Picture]:
    """Yield the frames of the video in a file, in one item or in several."""
    with opened(path) as file:
        stream = io.BytesIO(read(file, [part for frame in frames.ranges for part in frame]))
    count = 0
    for picture in videos.decode(stream, reading):
        count += 1
        yield picture
    if layout.announced is not None and count != -(-layout.announced // reading.every):
        remarks.add("miscounted")


@dataclasses.dataclass(frozen=True)
class _Region:
    """A rectangle of two-dimensional ultrasound, without column x1 and row y1.

    Attributes:
      rectangle: x0, y0, x1, y1 in pixels.
      scaled: whether it states a pixel size, even one that cannot be used here.
      edge: of its pixels in millimetres; NaN if they are not square, or not in a unit of length.
    """

    rectangle: tuple[int, int, int, int]
    scaled: bool
    edge: float


def _regions(tags: "Dataset", rows: int, columns: int) -> list[_Region] | None:
    """Return the regions of two-dimensional ultrasound; None if a region extends beyond the picture.

    In that case the picture was shrunk or cropped after the regions were written, so none can be trusted. One pixel
    beyond is accepted: some machines write the first column outside instead of the last one inside.
    """
    found = []
    for region in dicom_tags.items(tags, "SequenceOfUltrasoundRegions"):
        names = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")
        ends = [dicom_tags.number(region, name, math.nan) for name in names]
        if not all(math.isfinite(end) for end in ends):
            continue
        x0, y0, x1, y1 = (int(end) for end in ends)
        if x0 >= x1 or y0 >= y1:
            continue
        if min(x0, y0) < 0 or x1 > columns or y1 > rows:
            return None
        if dicom_tags.number(region, "RegionSpatialFormat", 0) != _TWO_DIMENSIONAL:
            continue  # M-mode, spectra, graphs
        rectangle = x0, y0, min(x1 + 1, columns), min(y1 + 1, rows)
        units = [dicom_tags.number(region, f"PhysicalUnits{axis}Direction", 0) for axis in "XY"]
        deltas = [abs(dicom_tags.number(region, f"PhysicalDelta{axis}", math.nan)) for axis in "XY"]
        edge = 10 * _edge(*deltas) if units == [_CENTIMETRES] * 2 else math.nan
        found.append(_Region(rectangle, any(units), edge))
    return found


def _pixel_mm(tags: "Dataset", regions: list[_Region] | None) -> float:
    """Return the edge of a pixel: the same in all regions or, if none has one, that of PixelSpacing.

    NaN if regions differ, or pixels are not square.
    """
    if regions is None:
        return math.nan
    if any(region.scaled for region in regions):
        edges = [region.edge for region in regions]
        return _edge(min(edges), max(edges)) if all(edge > 0 for edge in edges) else math.nan
    spacing = dicom_tags.value(dicom_tags.shared(tags, "PixelMeasuresSequence", "PixelSpacing"), "PixelSpacing")
    try:
        return _edge(float(spacing[0]), float(spacing[1]))
    except (TypeError, ValueError, IndexError):
        return math.nan


def _edge(x: float, y: float) -> float:
    return (x + y) / 2 if x > 0 and math.isfinite(x) and abs(x - y) <= 0.01 * x else math.nan


def _dropped(tags: "Dataset") -> Iterator[str]:
    """Yield the unread tags of the file header, before the pixels, and in the items that are read."""
    for tag in tags.file_meta.keys():  # noqa: SIM118  items() would read the values
        yield from _unread(tag)
    yield from _dropped_in(tags)


def _dropped_in(tags: "Dataset") -> Iterator[str]:
    for tag in tags.keys():  # noqa: SIM118  items() would read the values
        yield from _unread(tag)
    for name in _SEQUENCES:
        if name in tags:
            for item in dicom_tags.items(tags, name):
                yield from _dropped_in(item)


def _dropped_behind(file: BinaryIO, tags: "Dataset", end: int | None) -> Iterator[str]:
    """Yield the tags after the pixels, where some machines put private ones; not those of a deflated file."""
    from pydicom.filereader import data_element_generator

    if end is None:
        return
    implicit, little = tags.original_encoding
    file.seek(end)
    # Nothing there is needed: if it is broken, its tags are not listed.
    with contextlib.suppress(Exception):
        for element in data_element_generator(file, bool(implicit), bool(little), defer_size=1 << 10):
            yield from _unread(element.tag)


def _unread(tag: "BaseTag") -> Iterator[str]:
    """Yield an unread tag as number and name; without the name if private, because that is free text."""
    from pydicom.datadict import keyword_for_tag

    name = "private" if tag.is_private else keyword_for_tag(tag) or "unknown"
    if name not in (*READ_TAGS, *HASHED_TAGS, "FileMetaInformationGroupLength"):
        yield f"{tag} {name}"


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Discard what C code writes to the process's standard error, such as GDCM on damaged JPEG."""
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
    """Keep messages of pydicom and GDCM, which quote a file's values, from the terminal and the logs."""
    logger = logging.getLogger("pydicom")
    was = logger.level
    with contextlib.suppress(ImportError):
        import gdcm

        for switch in (gdcm.Trace.DebugOff, gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff):
            switch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if was <= logging.CRITICAL:
            logger.setLevel(logging.CRITICAL + 1)  # `disabled` would leave those of its modules as they are
        try:
            yield
        finally:
            if was <= logging.CRITICAL:
                logger.setLevel(was)
