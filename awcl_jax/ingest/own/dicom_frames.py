"""The frames of a DICOM file: their places, their number, and their samples as stored.

pydicom checks the length of the pixels and the number of frames only when it decodes all frames into one array, not
frame by frame as here. So both are checked here, before the first frame is decoded.
"""

import contextlib
import dataclasses
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from jaxtyping import Shaped

from awcl_jax.ingest.own import dicom_tags
from awcl_jax.ingest.own.codestream import (
    Codestream,
    begins_picture,
    begins_rle,
    read_codestream,
    without_applications,
)
from awcl_jax.ingest.own.items import BadFileError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

UNDEFINED = 0xFFFFFFFF
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_HALVED = ("YBR_FULL_422", "YBR_PARTIAL_422")  # two samples per pixel if not compressed
_RLE = "1.2.840.10008.1.2.5"
_RLE_HEADER = 64  # bytes
_NO_STREAM = "it does not begin as a compressed stream"
_SINGLE = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_NEXT = re.compile(rb"\xff\xd9\0{0,4}(?=\xff\xd8\xff|\xff\x4f\xff\x51)")  # the end of a stream, the start of another

Range = tuple[int, int]
"""Offset and length."""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Place of a file's pixels: offset of their first byte, their length or `UNDEFINED`, and their VR."""

    offset: int
    length: int
    vr: str

    @property
    def compressed(self) -> bool:
        """Whether they are in items, as compressed pixels are."""
        return self.length == UNDEFINED


@dataclasses.dataclass(frozen=True)
class Layout:
    """Description of a frame by the tags. For compressed frames, the stream is more reliable.

    Attributes:
      size: rows and columns.
      photometric: PhotometricInterpretation, in capitals; empty where it is missing.
      samples: of a pixel.
      planar: whether each sample has a plane; otherwise samples are interleaved.
      allocated, stored, high: BitsAllocated, BitsStored and HighBit.
      signed: whether samples have a sign.
      announced: NumberOfFrames; None where it is missing.
    """

    size: tuple[int, int]
    photometric: str
    samples: int
    planar: bool
    allocated: int
    stored: int
    high: int
    signed: bool
    announced: int | None


def read_layout(tags: "Dataset", *, compressed: bool) -> Layout:
    """Read the description of a frame from the tags.

    Raises:
      BadFileError: a required tag is missing or invalid; the others have defaults.
    """
    photometric = dicom_tags.text(tags, "PhotometricInterpretation").upper()
    if not compressed and not photometric:
        raise BadFileError("bad_tag", "PhotometricInterpretation is missing")
    samples = dicom_tags.whole(tags, "SamplesPerPixel", (1, 3), 1 if photometric in _SINGLE else 3)
    allocated = dicom_tags.whole(tags, "BitsAllocated", (1, 8, 16, 32), 8 if compressed else None)
    stored = dicom_tags.whole(tags, "BitsStored", range(1, allocated + 1), allocated)
    announced = dicom_tags.whole(tags, "NumberOfFrames", range(1 << 31), 0)
    return Layout(
        size=(dicom_tags.whole(tags, "Rows", range(1 << 16)), dicom_tags.whole(tags, "Columns", range(1 << 16))),
        photometric=photometric,
        samples=samples,
        planar=bool(dicom_tags.whole(tags, "PlanarConfiguration", (0, 1), 0)) and samples > 1,
        allocated=allocated,
        stored=stored,
        high=dicom_tags.whole(tags, "HighBit", range(stored - 1, allocated), stored - 1),
        signed=bool(dicom_tags.whole(tags, "PixelRepresentation", (0, 1), 0)),
        announced=announced or None,
    )


@dataclasses.dataclass(frozen=True)
class Frames:
    """Places of frames.

    Attributes:
      count: number of frames.
      end: offset after the pixels; None in a deflated file.
      ranges: of each compressed frame.
      halved: whether two neighbours in a row share their colours (uncompressed YBR_FULL_422).
    """

    count: int
    end: int | None
    ranges: tuple[tuple[Range, ...], ...] = ()
    halved: bool = False


def find_native(layout: Layout, pixels: Pixels) -> Frames:
    """Find uncompressed frames: as many as fit in the length, if that is more than announced.

    Raises:
      BadFileError: there are fewer than announced, or the length belongs to another layout.
    """
    if layout.samples == 1 and layout.photometric not in _SINGLE:
        raise BadFileError("contradiction", "PhotometricInterpretation has three samples, but SamplesPerPixel is 1")
    announced, area = layout.announced or 1, layout.size[0] * layout.size[1]
    colours = layout.samples == 3 and layout.allocated == 8
    halved = colours and layout.photometric in _HALVED and _is_halved(pixels.length, area, layout.announced)
    count = _count(pixels.length, area * (16 if halved else layout.samples * layout.allocated), announced)
    if count < announced:
        if colours and not halved and _fits(pixels.length, 2 * area, announced):
            raise BadFileError(
                "contradiction", "its length fits YBR_FULL_422, but PhotometricInterpretation is another"
            )
        raise BadFileError("cut_short", _counted(count, announced))
    return Frames(count, pixels.offset + pixels.length, halved=halved)


def _is_halved(length: int, area: int, announced: int | None) -> bool:
    """Return whether a length fits two samples per pixel, not three, which also occur under this name.

    Raises:
      BadFileError: both fit.
    """
    two, three = (_fits(length, samples * area, announced) for samples in (2, 3))
    if two == three and length >= 3 * area * (announced or 1):
        raise BadFileError("contradiction", "its length fits both YBR_FULL and YBR_FULL_422")
    return not three


def _fits(length: int, size: int, announced: int | None) -> bool:
    """Return whether a length is that of complete frames, with or without a padding byte."""
    if announced is not None and announced > 1:
        return length in (announced * size, announced * size + 1)
    return length >= size and length % size in (0, 1)


def _count(length: int, frame_bits: int, announced: int) -> int:
    """Return the number of complete frames; a padding byte is not a frame, however small frames are."""
    if 0 <= 8 * length - announced * frame_bits < 16:
        return announced
    return 8 * length // frame_bits


def _counted(found: int, announced: int) -> str:
    return f"{found:,} complete frame(s), but NumberOfFrames is {announced:,}"


def find_compressed(file: BinaryIO, pixels: Pixels, announced: int | None) -> Frames:
    """Find compressed frames, each in one item or in several, by the streams in them.

    The item that closes the sequence may be missing or replaced by zeros, provided that all items are complete.

    Raises:
      BadFileError: an item is truncated, or there are fewer frames than announced.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(pixels.offset)
    items: list[Range] = []
    heads: list[bytes] = []
    table = b""
    while (mark := file.read(8))[:4] == _ITEM and len(mark) == 8:
        offset, length = file.tell(), int.from_bytes(mark[4:], "little")
        if offset + length > size:
            raise BadFileError("cut_short")
        head = file.read(min(12, length))
        if offset == pixels.offset + 8 and not begins_picture(head):
            table = head + file.read(length - len(head))
        elif length:
            heads.append(head)
            items.append((offset, length))
        file.seek(offset + length)
    closed = mark[:4] == _END
    frames = _group(items, heads, _offsets(table, items, pixels), announced)
    if len(frames) < max(announced or 1, 2):
        frames = [part for frame in frames for part in _split(file, frame)]
    if len(frames) < (announced or 1):
        raise BadFileError("cut_short", _counted(len(frames), announced or 1))
    if not closed and announced is None and mark.strip(b"\0"):
        raise BadFileError("cut_short")  # what follows is not an item, and the expected number is unknown
    end = items[-1][0] + items[-1][1] + (8 if closed or mark == b"\0" * 8 else 0)
    return Frames(len(frames), end, tuple(frames))


def _offsets(table: bytes, items: Sequence[Range], pixels: Pixels) -> list[int]:
    """Return which items begin a frame by the Basic Offset Table; empty if it is empty or does not fit."""
    base = pixels.offset + 8 + len(table)
    places = {offset - 8 - base: number for number, (offset, _) in enumerate(items)}
    starts = [places.get(int.from_bytes(table[at : at + 4], "little"), -1) for at in range(0, len(table), 4)]
    return starts if starts and starts == sorted(set(starts)) and starts[0] == 0 else []


def _group(
    items: Sequence[Range], heads: Sequence[bytes], table: Sequence[int], announced: int | None
) -> list[tuple[Range, ...]]:
    """Return the items of each frame, which begins where a stream does; without any, use the table or the number."""
    starts = [number for number, head in enumerate(heads) if begins_picture(head)]
    if not items:
        return []
    if not starts or starts[0]:
        starts = list(table) or ([*range(len(items))] if len(items) == announced else [0])
    return [tuple(items[start:stop]) for start, stop in zip(starts, [*starts[1:], len(items)], strict=True)]


def _split(file: BinaryIO, frame: tuple[Range, ...]) -> Iterator[tuple[Range, ...]]:
    """Yield the streams of one item, which may have several in sequence."""
    if len(frame) > 1:
        yield frame
        return
    ((start, length),) = frame
    ends = [match.end() for match in _NEXT.finditer(read(file, frame))]
    for begin, end in zip([0, *ends], [*ends, length], strict=True):
        yield ((start + begin, end - begin),)


def read(file: BinaryIO, ranges: Sequence[Range]) -> bytes:
    """Read the bytes of these ranges in sequence."""
    parts = []
    for offset, length in ranges:
        file.seek(offset)
        parts.append(file.read(length))
    return b"".join(parts)


@dataclasses.dataclass(frozen=True)
class Samples:
    """A frame as stored.

    Attributes:
      values: one component, or three behind each other.
      stream: a compressed frame's description of itself.
    """

    values: Shaped[np.ndarray, "..."]
    stream: Codestream | None = None


def decode_native(
    file: BinaryIO | io.BytesIO, syntax: "UID", pixels: Pixels, layout: Layout, frames: Frames, wanted: range
) -> Iterator[Samples]:
    """Decode uncompressed frames."""
    from pydicom.pixels import get_decoder

    options: dict[str, Any] = {"view_only": not frames.halved, "pixel_vr": pixels.vr}
    options |= _options(layout.size, layout.samples, layout.allocated, signed=layout.signed)
    options |= {"planar_configuration": int(layout.planar), "number_of_frames": frames.count}
    if frames.halved:
        options |= {"photometric_interpretation": "YBR_FULL_422", "planar_configuration": 0}
    decoder = get_decoder(syntax)
    file.seek(pixels.offset)
    if not frames.halved:
        for values, _ in decoder.iter_array(file, indices=wanted, raw=True, **options):
            yield Samples(values)
        return
    for number in wanted:
        # One by one: `iter_array` reads the second frame of YBR_FULL_422 with three samples per pixel.
        file.seek(pixels.offset)
        values, _ = decoder.as_array(file, index=number, raw=True, **options)
        yield Samples(values)


def _options(size: tuple[int, int], samples: int, bits: int, *, signed: bool) -> dict[str, Any]:
    """Return options for pydicom's decoders, never with the file's PhotometricInterpretation: some convert by it."""
    return {
        "rows": size[0],
        "columns": size[1],
        "samples_per_pixel": samples,
        "bits_allocated": bits if bits == 1 else 8 if bits <= 8 else 16 if bits <= 16 else 32,
        "bits_stored": bits,
        "pixel_representation": int(signed),
        "planar_configuration": 0,
        "photometric_interpretation": "RGB" if samples == 3 else "MONOCHROME2",
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "correct_unused_bits": False,  # they are checked here
    }


def decode_compressed(data: bytes, syntax: "UID", layout: Layout) -> Samples:
    """Decode a compressed frame by its own headers; the transfer syntax only explains failures.

    Raises:
      BadFileError: it is damaged, differs in size from the tags, or no installed package decodes it.
    """
    stream = read_codestream(data)
    if stream is None:
        if not begins_rle(data) and syntax != _RLE:
            raise _unknown_stream(syntax)
        return Samples(_decode_rle(data, layout))
    if stream.components not in (1, 3):
        raise BadFileError("contradiction", f"its stream has {stream.components} components; 1 or 3 are supported")
    if stream.size != layout.size:
        raise BadFileError("contradiction", "its stream differs in size from Rows and Columns")
    data = data[stream.start :]
    if stream.codec == "jpeg" and stream.precision == 8:
        return Samples(_decode_by_pillow(data, stream), stream)
    if stream.exact and stream.precision == 8 and not layout.signed:
        # Pillow has the values of pylibjpeg, which keeps Python's lock while it decodes. Both use OpenJPEG.
        with contextlib.suppress(Exception):
            values = _decode_by_pillow(data, stream)
            if values.dtype == np.uint8 and values.shape == stream.size:
                return Samples(values, stream)
    return Samples(_decode_by_plugin(data, stream, signed=layout.signed), stream)


def _unknown_stream(syntax: "UID") -> BadFileError:
    from pydicom.pixels import get_decoder

    if not syntax.is_encapsulated:
        return BadFileError("bad_tag", "TransferSyntaxUID is missing or does not match its pixels")
    try:
        get_decoder(syntax)
    except NotImplementedError:
        return BadFileError("no_decoder")
    return BadFileError("cut_short", _NO_STREAM)


def _decode_rle(data: bytes, layout: Layout) -> Shaped[np.ndarray, "..."]:
    """Decode with Pillow, or where it finds too few bytes with pydicom, which takes ten times as long in Python.

    Raises:
      BadFileError: the header does not match the tags.
      RuntimeError, ValueError: too few bytes for pydicom, too.
    """
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import RLELossless

    segments = int.from_bytes(data[:4], "little")
    if not 1 <= segments <= 15:
        raise BadFileError("cut_short", _NO_STREAM)
    width, rest = divmod(segments, layout.samples)
    if rest or width not in (1, 2, 4):
        raise BadFileError("contradiction", "its number of RLE segments does not match SamplesPerPixel")
    if (values := _unpack_rle(data, layout, segments)) is not None:
        return values
    options = _options(layout.size, layout.samples, 8 * width, signed=layout.signed)
    values, _ = get_decoder(RLELossless).as_array(encapsulate([data]), index=0, raw=True, **options)
    return values


def _unpack_rle(data: bytes, layout: Layout, segments: int) -> Shaped[np.ndarray, "..."] | None:
    """Return the values of RLE segments, or None if their offsets or lengths are not as the standard says.

    A segment has one byte of each value of one sample, the most significant first, packed as in TIFF (PackBits); bytes
    beyond the frame's are padding (DICOM PS3.5, annex G).
    """
    from PIL import Image

    rows, columns = layout.size
    if len(data) < _RLE_HEADER or not rows * columns:
        return None
    offsets = np.frombuffer(data, "<u4", segments, offset=4).tolist()
    parts = list(itertools.pairwise([*offsets, len(data)]))
    if offsets[0] != _RLE_HEADER or any(begin >= end for begin, end in parts):
        return None
    try:
        # As one row: there are files whose runs go on in the next one.
        planes = [
            np.asarray(Image.frombytes("L", (rows * columns, 1), data[begin:end], "packbits", "L"))[0]
            for begin, end in parts
        ]
    except ValueError:
        return None
    samples, width = layout.samples, segments // layout.samples
    low_first = np.stack(planes).reshape(samples, width, -1)[:, ::-1]
    values = np.ascontiguousarray(low_first.transpose(2, 0, 1)).view(f"<{'i' if layout.signed else 'u'}{width}")
    return values.reshape(rows, columns, samples) if samples > 1 else values.reshape(rows, columns)


def _decode_by_pillow(data: bytes, stream: Codestream) -> Shaped[np.ndarray, "..."]:
    """Decode JPEG with libjpeg, with its components as in the stream, or JPEG 2000 with OpenJPEG."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("JPEG", "JPEG2000")) as image:
        if stream.taken_for_ybr and stream.codec == "jpeg":
            image.draft("YCbCr", image.size)
        return np.asarray(image)


def _decode_by_plugin(data: bytes, stream: Codestream, *, signed: bool) -> Shaped[np.ndarray, "..."]:
    """Try pydicom's decoders one after the other.

    GDCM is never the second: it may crash the process on input that another refuses (JPEG 2000 whose components differ
    from its tags, damaged JPEG), and libjpeg and OpenJPEG decode all that it decodes of these.
    """
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEG2000Lossless, JPEGExtended12Bit, JPEGLossless, JPEGLSLossless

    syntax, plugins = {
        "jpeg": (JPEGExtended12Bit, ("pylibjpeg",)),
        "lossless": (JPEGLossless, ("gdcm", "pylibjpeg")),
        "jpeg_ls": (JPEGLSLossless, ("gdcm", "pyjpegls", "pylibjpeg")),
        "jpeg2000": (JPEG2000Lossless, ("pylibjpeg", "pillow")),
    }[stream.codec]
    if stream.codec == "jpeg_ls":
        data = without_applications(data)
    decoder = get_decoder(syntax)
    asked = [plugin for plugin in plugins if plugin in decoder.available_plugins]
    options = _options(stream.size, stream.components, stream.precision, signed=signed)
    for plugin in asked:
        with contextlib.suppress(Exception):  # they raise many kinds
            values, _ = decoder.as_array(encapsulate([data]), index=0, raw=True, decoding_plugin=plugin, **options)
            return values
    if stream.codec == "lossless" and stream.precision == 8:
        asked.append("pillow")
        with contextlib.suppress(Exception):
            return _decode_by_pillow(data, stream)
    # pydicom uses no decoder for what GDCM is known to get wrong.
    if not asked or (stream.codec == "jpeg_ls" and stream.precision < 8):
        raise BadFileError("no_decoder", f"{stream.codec} of {stream.precision} bits")
    raise BadFileError("cut_short", f"refused by {', '.join(asked)}")
