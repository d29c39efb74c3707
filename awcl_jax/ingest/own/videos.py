"""Videos as grey frames, decoded by FFmpeg through PyAV; animated GIF and multi-page pictures by Pillow."""

import importlib.util
import io
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from awcl_jax.data.images import BadImageError, Grey, read_pages
from awcl_jax.data.upright import AS_STORED, orientation_of_matrix, square_width, upright, with_square_pixels
from awcl_jax.ingest.own.containers import is_broken
from awcl_jax.ingest.own.images import apply_window
from awcl_jax.ingest.own.items import BadFileError, Clip, Picture, Reading
from awcl_jax.ingest.own.paths import opened
from awcl_jax.runtime.errors import InputError

if TYPE_CHECKING:
    import av

PAGED = (".gif", ".tif", ".tiff")
SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mpeg", ".mpg", ".mkv", ".wmv", ".webm", *PAGED)

_PAGED_HEADS = (b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MATRIX = struct.Struct("9i")


def require_av() -> None:
    """Check that PyAV is installed.

    Raises:
      InputError: it is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise InputError("PyAV, which decodes videos, is not installed: pip install 'awcl_jax[video]'.")


def open_video(path: Path, reading: Reading) -> Clip:
    """Open a video; see `decode`."""

    def frames() -> Iterator[Picture]:
        with opened(path) as file:
            yield from decode(file, reading)

    return Clip(frames=frames)


def decode(file: BinaryIO | io.BytesIO, reading: Reading) -> Iterator[Picture]:
    """Yield every n-th frame of a clip, from the first, upright and with square pixels.

    A frame is its luminance from 0 to 255, between the video's black and white: 16 to 235 of a limited range are
    stretched once, and 64 to 940 of 10 bits likewise. Plain grey values or colours of more than 8 bits have no such
    black and white; grey ones need a window.

    By default FFmpeg hides damaged packets and ends silently where a file is truncated; here both are faults.

    Raises:
      BadFileError: it is not a video, is truncated or damaged, its picture is too large or to be displayed at a slant,
        or it has more than 8 bits without a window.
    """
    start = file.read(4)
    if is_broken(file):
        raise BadFileError("cut_short")
    frames = _pages(file, reading) if start in _PAGED_HEADS else _video(file, reading)
    number = -1
    for number, picture in enumerate(frames):
        if number % reading.every == 0:
            yield picture()
    if number < 0:
        raise BadFileError("no_video")


def _pages(file: BinaryIO | io.BytesIO, reading: Reading) -> Iterator[Callable[[], Picture]]:
    """Yield the pictures of a file one after the other."""
    try:
        for page in read_pages(file, max_pixels=reading.max_pixels):
            if page.deep and reading.window is None:
                raise BadFileError("bit_depth")
            yield partial(_picture_of, page, reading.window)
    except BadImageError as error:
        raise BadFileError("no_video" if error.kind == "no_image" else error.kind) from error


def _picture_of(page: Grey, window: tuple[float, float] | None) -> Picture:
    return Picture(page.values if window is None or not page.deep else apply_window(page.values, window), page.colour)


def _video(file: BinaryIO | io.BytesIO, reading: Reading) -> Iterator[Callable[[], Picture]]:
    """Yield the frames of a video; each is converted when called."""
    import av

    start = file.read(12)
    file.seek(0)
    try:
        container = av.open(file, mode="r")
    except Exception as error:  # FFmpeg's errors are of many kinds
        # MP4 and MOV mostly end with their table of contents; without it no frame is found.
        raise BadFileError("cut_short" if start[4:8] == b"ftyp" else "no_video") from error
    with container:
        stream = next(iter(container.streams.video), None)
        if stream is None or stream.codec_context is None:  # no picture, or an unknown codec
            raise BadFileError("no_video")
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"err_detect": "explode"}
        # PyAV 19 has a number type of its own, and 0 where the aspect is unknown.
        ratio = stream.sample_aspect_ratio
        aspect = Fraction(ratio.numerator, ratio.denominator) if ratio else None
        _require_size(square_width(stream.width, aspect) * stream.height, reading)
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
                decoded = packet.decode()
            except StopIteration:
                break
            except Exception as error:
                raise BadFileError("cut_short") from error
            if packet.is_corrupt:
                raise BadFileError("cut_short")
            for frame in decoded:
                yield partial(_show, frame, aspect, reading)


def _show(frame: "av.VideoFrame", aspect: Fraction | None, reading: Reading) -> Picture:
    """Return a decoded frame as it is displayed."""
    _require_size(square_width(frame.width, aspect) * frame.height, reading)
    if not _is_deep(frame):
        grey = frame.to_ndarray(format="gray")
    elif reading.window is None or not frame.format.name.startswith("gray1"):
        raise BadFileError("bit_depth")
    else:
        grey = apply_window(frame.to_ndarray(), reading.window)
    return Picture(upright(with_square_pixels(grey, aspect), _orientation_of(frame)))


def _is_deep(frame: "av.VideoFrame") -> bool:
    """Return whether a frame has plain values of more than 8 bits, without a defined black and white."""
    layout = frame.format
    plain = layout.name.startswith("gray") or layout.is_rgb
    return plain and max(component.bits for component in layout.components) > 8


def _orientation_of(frame: "av.VideoFrame") -> int:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return AS_STORED
    # A buffer, though PyAV's annotations do not say so.
    orientation = orientation_of_matrix(_MATRIX.unpack(bytes(matrix)))  # type: ignore[call-overload]
    if orientation is None:
        raise BadFileError("slanted")
    return orientation


def _require_size(pixels: int, reading: Reading) -> None:
    if pixels > reading.max_pixels:
        raise BadFileError("too_large")
