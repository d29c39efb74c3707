"""Measure frames per second that `awcl_jax.ingest` turns into records, against a plain loop over the library.

python -m benchmarks.ingest
python -m benchmarks.ingest --frames=400 --size=600x800 --workers=8

The plain loop decodes every frame to grey and discards it (`decode`), or encodes it as PNG as ingest does (`decode +
PNG`), the least that storing PNGs takes. `ingest` makes finished records of the same files, in one process and in at
most several, with all its checks: damaged files, blank and repeated frames, ids, labels; for DICOM it searches every
frame for the sector and cuts it to that, as the command does. What processes take to start counts in each turn. The
ways take turns.

Where others use the machine, look at the processors' time: of several processes that of all of them together.
"""

import argparse
import dataclasses
import functools
import multiprocessing.forkserver
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Each decoding process imports this module, because it is the main one, which the command's is not: so av and pydicom
# are imported where they are used.
import cv2
import numpy as np
import psutil  # type: ignore[import-untyped]
from jaxtyping import UInt8

from awcl_jax.data.anatomy import Taxonomy
from awcl_jax.data.png import encode_png
from awcl_jax.ingest.own.chunks import decode_all
from awcl_jax.ingest.own.items import Item, Reading
from awcl_jax.ingest.own.plan import make_jobs
from awcl_jax.ingest.own.privacy import Pseudonyms

_CLIP = 25  # frames of a clip
_GREY = UInt8[np.ndarray, "h w"]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=2000, help="of each kind (default: %(default)s)")
    parser.add_argument("--size", default="480x640", help="height x width in pixels (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of each way (default: %(default)s)")
    parser.add_argument("--kinds", help=f"only these, separated by semicolons (default: {'; '.join(KINDS)})")
    args = parser.parse_args()
    height, width = (int(part) for part in args.size.split("x"))
    frames = sweep(args.frames, height, width)
    print(
        f"{args.frames} frames of {height} x {width}, {os.cpu_count()} processors, {args.turns} turns. Frames a second "
        "and milliseconds of processors per frame: medians, and what `decode + PNG` took in the same turn, divided by "
        "what this took (median, least to most)"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in args.kinds.split(";") if args.kinds else KINDS:
            write, kind, plain = KINDS[name]
            files = write(Path(folder), frames)
            ways = {
                "decode": functools.partial(_decode, plain, files),
                "decode + PNG": functools.partial(_encode, plain, files),
                "ingest": functools.partial(_ingest, files, kind, 1),
                f"ingest x {args.workers}": functools.partial(_ingest, files, kind, args.workers),
            }
            taken = [[_time(run) for run in ways.values()] for _ in range(args.turns + 1)][1:]  # the first fills caches
            print(name)
            for way, times in zip(ways, zip(*taken, strict=True), strict=True):
                wall, processors = (
                    [(getattr(plain[1], of), getattr(own, of)) for plain, own in zip(taken, times, strict=True)]
                    for of in ("wall", "processors")
                )
                rate = args.frames / statistics.median(own for _, own in wall)
                each = 1000 * statistics.median(own for _, own in processors) / args.frames
                print(f"  {way:14}{rate:6.0f}/s {_ratios(wall)}   {each:6.2f} ms {_ratios(processors)}", flush=True)


def _ratios(pairs: list[tuple[float, float]]) -> str:
    ratios = [plain / own for plain, own in pairs]
    return f"({statistics.median(ratios):4.2f}, {min(ratios):4.2f} to {max(ratios):4.2f})"


def sweep(count: int, height: int, width: int) -> list[_GREY]:
    """Return frames of speckle under a moving sector on black, similar to a clip's frames for a codec."""
    rng = np.random.default_rng(0)
    speckle = cv2.GaussianBlur(rng.rayleigh(40, (height, width + count)).astype(np.float32), (0, 0), 1.5)
    sector = cv2.ellipse(np.zeros((height, width)), (width // 2, 0), (height, height), 0, 50, 130, 1, -1)
    return [np.clip(speckle[:, n : n + width] * sector, 0, 255).astype(np.uint8) for n in range(count)]


_Plain = Callable[[Path], Iterator[_GREY]]


def _decode(plain: _Plain, files: list[Path]) -> None:
    for file in files:
        for _ in plain(file):
            pass


def _encode(plain: _Plain, files: list[Path]) -> None:
    for file in files:
        for frame in plain(file):
            encode_png(frame)


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Write `count` PNGs."""
    return _write_images(folder, sweep(count, 480, 640))


def ingest_pictures(files: list[Path]) -> None:
    """Make records of PNGs, in one process."""
    _ingest(files, "image", 1)


def _ingest(files: list[Path], kind: str, workers: int) -> None:
    items = [Item(number, file, f"s{number}", f"p{number}", "train") for number, file in enumerate(files)]
    reading = Reading(every=1, near_duplicate=0, region="tag" if kind == "dicom" else "whole", crop=True)
    with tempfile.TemporaryDirectory() as folder:
        jobs = make_jobs(items, Pseudonyms(None), kind=kind, reading=reading, taxonomy=Taxonomy({}))
        decode_all(jobs, Path(folder), workers=workers, progress=lambda done: None)


@dataclasses.dataclass(frozen=True)
class _Taken:
    """Seconds, and seconds of processors."""

    wall: float
    processors: float


def _time(run: Callable[[], object]) -> _Taken:
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]  # of the last turn
    wall, processors = time.perf_counter(), _processors()
    run()
    return _Taken(time.perf_counter() - wall, _processors() - processors)


def _processors() -> float:
    """Return the seconds of processors of this process and of those that it has started."""
    own = psutil.Process()
    all_times = [own.cpu_times(), *(child.cpu_times() for child in own.children(recursive=True))]
    return sum(of.user + of.system + of.children_user + of.children_system for of in all_times)


def _clips(frames: list[_GREY]) -> Iterator[tuple[int, list[_GREY]]]:
    for start in range(0, len(frames), _CLIP):
        yield start, frames[start : start + _CLIP]


def _write_images(folder: Path, frames: list[_GREY]) -> list[Path]:
    files = [folder / f"{number}.png" for number in range(len(frames))]
    for file, frame in zip(files, frames, strict=True):
        cv2.imwrite(str(file), frame)
    return files


def _write_videos(folder: Path, frames: list[_GREY]) -> list[Path]:
    import av

    files = []
    for start, clip in _clips(frames):
        files.append(folder / f"{start}.mp4")
        with av.open(str(files[-1]), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width = clip[0].shape
            for frame in clip:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
            container.mux(stream.encode())
    return files


def _write_dicom(syntax: str) -> Callable[[Path, list[_GREY]], list[Path]]:
    """Return a function that writes clips in a syntax, by its name in pydicom."""

    def write(folder: Path, frames: list[_GREY]) -> list[Path]:
        import pydicom
        from pydicom import uid
        from pydicom.pixels import compress, set_pixel_data

        files = []
        for start, clip in _clips(frames):
            ds = pydicom.Dataset()
            ds.file_meta = pydicom.dataset.FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
            ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid.UltrasoundMultiFrameImageStorage
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
            ds.Modality = "US"
            region = pydicom.Dataset()
            region.RegionSpatialFormat, region.RegionLocationMinX0, region.RegionLocationMinY0 = 1, 0, 0
            region.RegionLocationMaxY1, region.RegionLocationMaxX1 = (edge - 1 for edge in clip[0].shape)
            ds.SequenceOfUltrasoundRegions = [region]
            set_pixel_data(ds, np.stack(clip), "MONOCHROME2", 8)
            if syntax != "ExplicitVRLittleEndian":
                compress(ds, getattr(uid, syntax), generate_instance_uid=False)
            files.append(folder / f"{start}.dcm")
            ds.save_as(files[-1], enforce_file_format=True)
        return files

    return write


def _plain_image(file: Path) -> Iterator[_GREY]:
    from PIL import Image

    with Image.open(file) as image:
        yield np.asarray(image.convert("L"))


def _plain_video(file: Path) -> Iterator[_GREY]:
    import av

    with av.open(str(file)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="gray")


def _plain_dicom(file: Path) -> Iterator[_GREY]:
    from pydicom.pixels import iter_pixels

    yield from iter_pixels(file)


KINDS: dict[str, tuple[Callable[[Path, list[_GREY]], list[Path]], str, _Plain]] = {
    "PNG": (_write_images, "image", _plain_image),
    "H.264": (_write_videos, "video", _plain_video),
    "DICOM, native": (_write_dicom("ExplicitVRLittleEndian"), "dicom", _plain_dicom),
    "DICOM, RLE": (_write_dicom("RLELossless"), "dicom", _plain_dicom),
    "DICOM, JPEG 2000": (_write_dicom("JPEG2000Lossless"), "dicom", _plain_dicom),
}
"""Title -> (function that writes files, ingest's name of the kind, the plain loop)."""


if __name__ == "__main__":
    main()
