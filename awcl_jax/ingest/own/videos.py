"""Videos as grey frames, decoded by FFmpeg through PyAV."""

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from awcl_jax.ingest.own.items import BadFileError, Clip, Picture, Reading
from awcl_jax.ingest.own.paths import opened
from awcl_jax.runtime.errors import InputError

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mpeg", ".mpg", ".mkv", ".wmv", ".webm")


def require_av() -> None:
    """Refuse to go on without PyAV.

    Raises:
      InputError: it is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise InputError("Videos are decoded by PyAV, which is not installed: pip install 'awcl_jax[video]'.")


def open_video(path: Path, reading: Reading) -> Clip:
    """Open a video; see `decode`."""

    def frames() -> Iterator[Picture]:
        with opened(path) as file:
            yield from decode(file, reading)

    return Clip(frames=frames)


def decode(file: BinaryIO | io.BytesIO, reading: Reading) -> Iterator[Picture]:
    """Every n-th frame of a video, from the first, as its luminance stretched to 0 to 255.

    FFmpeg by itself conceals what a damaged packet lacks, and ends quietly where a file is cut short; here both are
    faults.

    Raises:
      BadFileError: it is no video, is cut short or damaged, or its picture is too large.
    """
    import av

    start = file.read(12)
    file.seek(0)
    try:
        container = av.open(file, mode="r")
    except Exception as error:  # FFmpeg's errors are of many kinds
        # MP4 and MOV mostly end with their table of contents: without it not one frame is found.
        raise BadFileError("cut_short" if start[4:8] == b"ftyp" else "no_video") from error
    with container:
        stream = next(iter(container.streams.video), None)
        if stream is None or stream.codec_context is None:  # no picture, or in a codec that is not known
            raise BadFileError("no_video")
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"err_detect": "explode"}
        _require_size(stream.width * stream.height, reading)
        number = 0
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
                if number % reading.every == 0:
                    _require_size(frame.width * frame.height, reading)
                    yield Picture(frame.to_ndarray(format="gray"))
                number += 1
    if not number:
        raise BadFileError("no_video")


def _require_size(pixels: int, reading: Reading) -> None:
    if pixels > reading.max_pixels:
        raise BadFileError("too_large")
