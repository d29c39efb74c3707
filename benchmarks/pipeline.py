"""Measure frames per second from storage to views, against a PyTorch DataLoader with the published augmentation.

python -m benchmarks.pipeline --data=DIR --out=DIR

DIR is a prepared dataset; without it, the phantom. Every way makes two views of each frame, in float32:

- `awcl_jax`: the dataset's PNGs, decoded by Grain's threads and augmented on the device;
- `first run`: the same, and decoded frames are written to a file for later runs (`data.disk_cache_gb`);
- `later run`: its first epoch, from that file; `cold` if the system has to read the file from the disk;
- `kept in memory`: from the second epoch, if all frames fit;
- `DataLoader`: the same PNGs, decoded and augmented by Albumentations in PyTorch's worker processes (0: in the main
  process).

Below are the parts alone: decoding a frame, by storage, and augmenting it. Ways take turns; the table has the median
frames per second and, for whole ways, the ratio to the DataLoader of two workers with the extremes.
"""

import argparse
import dataclasses
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from awcl_jax.augment.options import PAPER
from awcl_jax.augment.views import two_views
from awcl_jax.data import pipeline
from awcl_jax.data.decoded import FOLDER
from awcl_jax.data.reader import FrameReader
from awcl_jax.data.records import Records
from awcl_jax.data.sampler import EpochPlan
from awcl_jax.data.scans import ScanIndex, find_dataset
from awcl_jax.ingest import prepare
from awcl_jax.runtime import sharding
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.files import write_whole

_BATCH = 32
_REFERENCE = "DataLoader, 2 workers"


def main() -> None:
    """Measure everything in turns and write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared dataset (default: the phantom)")
    parser.add_argument("--size", type=int, default=128, help="edge that frames are read at (default: %(default)s)")
    parser.add_argument("--view", type=int, default=112, help="edge of a view (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=60, help="of 32 frames in a turn (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of each way (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for pipeline.md")
    parser.add_argument("--scratch", type=Path, help="folder for decoded frames (default: the system's temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        _measure(args, ScanIndex.from_dataset(_linked(args.data, Path(scratch))).split("train"))


def _linked(data: Path | None, scratch: Path) -> Path:
    """Return a folder with links to the dataset's files, so that decoded frames are not written beside it."""
    dataset = find_dataset(data or prepare.prepare_phantom("default"))
    return shutil.copytree(
        dataset, scratch / "dataset", copy_function=os.symlink, ignore=shutil.ignore_patterns(FOLDER)
    )


def _measure(args: argparse.Namespace, index: ScanIndex) -> None:
    ways = {**_whole(args, index), **_parts(args, index)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()  # compiles, starts workers, fills caches
    for _ in range(args.turns):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    frames = args.batches * _BATCH
    setting = f"{len(index)} frames, read at {args.size} px, two views of {args.view} px, {os.cpu_count()} cores"
    lines = [
        f"{setting}, {jax.devices()[0].device_kind}; {args.turns} turns of {frames} frames",
        "",
        "| way | frames/s | times as fast as the DataLoader (least, most) |",
        "|---|---|---|",
    ]
    for name, taken in seconds.items():
        ratio = ""
        if _REFERENCE in ways and not name.startswith("only"):
            ratios = [other / own for own, other in zip(taken, seconds[_REFERENCE], strict=True)]
            ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}, {max(ratios):.1f})"
        lines.append(f"| {name} | {frames / statistics.median(taken):.0f} | {ratio} |")
    print("\n".join(lines))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_whole(args.out / "pipeline.md", "\n".join(lines) + "\n")


def _whole(args: argparse.Namespace, index: ScanIndex) -> dict[str, Callable[[], None]]:
    """Return the ways from the dataset to views."""
    plan = EpochPlan(np.arange(len(index)), batch_size=_BATCH, seed=0)
    mesh = sharding.make_mesh()
    views = _augmenting(args.view)

    def ours(threads: int, reader_of: Callable[[], FrameReader]) -> Callable[[], None]:
        def run() -> None:
            reader = reader_of()
            read = pipeline.supervised_batches(
                plan, {"image": reader.read}, start=0, stop=args.batches, threads=threads
            )
            for batch in read:
                made = views(sharding.place_batch(batch.arrays, mesh))
            jax.block_until_ready(made)

        return run

    def on_disk(*, first: bool = False, cold: bool = False) -> FrameReader:
        if first:
            shutil.rmtree(index.path / FOLDER, ignore_errors=True)
        if cold:
            _forget(index.path / FOLDER)
        return FrameReader(index, args.size, 0, disk_cache_gb=100)

    plain, kept = FrameReader(index, args.size, 0), FrameReader(index, args.size, 2**14)
    ways = {f"awcl_jax, {threads} threads": ours(threads, lambda: plain) for threads in (1, 2)}
    ways["awcl_jax, 2 threads, first run"] = ours(2, lambda: on_disk(first=True))
    ways["awcl_jax, 1 thread, later run"] = ours(1, on_disk)
    ways["awcl_jax, 2 threads, later run"] = ours(2, on_disk)
    ways["awcl_jax, 2 threads, later run, cold"] = ours(2, lambda: on_disk(cold=True))
    ways["awcl_jax, kept in memory"] = ours(2, lambda: kept)
    encoded = _encoded(index, args.batches * _BATCH)
    for workers in (0, 2):
        loader = _data_loader(encoded, args.size, args.view, workers)
        if loader is not None:
            ways[f"DataLoader, {workers} workers"] = _exhausting(loader, args.batches)
    return ways


def _forget(folder: Path) -> None:
    """Make the system drop its copy of these files in memory."""
    for file in folder.iterdir():
        with file.open("rb") as content:
            os.fsync(content)
            os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _parts(args: argparse.Namespace, index: ScanIndex) -> dict[str, Callable[[], None]]:
    """Return the parts alone: decoding, by storage and threads, and augmenting."""
    frames = args.batches * _BATCH
    files = _encoded(index, frames)
    encoded = [files[i % len(files)] for i in range(frames)]
    decoded = [_decode(file) for file in encoded]
    stored: dict[str, list[Any]] = {
        "PNG": encoded,
        "JPEG": [cv2.imencode(".jpg", frame)[1].tobytes() for frame in decoded],
        "raw": [frame.tobytes() for frame in decoded],
    }
    shapes = [frame.shape for frame in decoded]

    def read(file: bytes, shape: tuple[int, int], *, raw: bool) -> np.ndarray:
        frame = np.frombuffer(file, np.uint8).reshape(shape) if raw else _decode(file)
        return cv2.resize(frame, (args.size, args.size), interpolation=cv2.INTER_AREA)

    def decoding(storage: str, threads: int) -> Callable[[], None]:
        def run() -> None:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(lambda f, s: read(f, s, raw=storage == "raw"), stored[storage], shapes):
                    pass

        return run

    cv2.setNumThreads(1)
    ways = {f"only reading {s}, {t} threads": decoding(s, t) for s in stored for t in (1, 2)}
    images = np.stack([cv2.resize(frame, (args.size, args.size)) for frame in decoded[:_BATCH]])
    batch = {"image": jax.numpy.asarray(images), "row": jax.numpy.arange(_BATCH)}
    views = _augmenting(args.view)

    def on_device() -> None:
        for _ in range(args.batches):
            made = views(batch)
        jax.block_until_ready(made)

    ways["only augmenting, on the device"] = on_device
    transform = _albumentations(args.view)
    if transform is not None:

        def on_cpu() -> None:
            for i in range(2 * frames):
                transform(image=images[i % _BATCH])

        ways["only augmenting, Albumentations, 1 core"] = on_cpu
    return ways


def _augmenting(view: int) -> Callable[[dict[str, Any]], jax.Array]:
    options = dataclasses.replace(PAPER, size=view)
    return jax.jit(lambda batch: two_views(batch["image"], rows=batch["row"], step=0, seed=0, options=options))


def _encoded(index: ScanIndex, count: int) -> list[bytes]:
    """Return the first frames as stored."""
    records = Records(index.path).read_many("train", range(min(count, len(index))))
    return [record["image"] for record in records]


def _decode(file: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return image


def _albumentations(view: int) -> Any:
    """Return the published augmentation for grey frames; None if the package is not installed."""
    try:
        import albumentations
    except ImportError:
        return None
    return albumentations.Compose(
        [
            albumentations.RandomResizedCrop((view, view), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),
            albumentations.HorizontalFlip(),
            albumentations.RandomGamma((75, 125), p=1.0),
            albumentations.ColorJitter(brightness=(0.75, 1.25), contrast=(1.0, 1.0), saturation=0.0, hue=0.0, p=1.0),
            albumentations.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.0, hue=0.0, p=0.8),
            albumentations.Normalize((PAPER.mean,), (PAPER.std,)),
        ]
    )


class _Frames:
    """A dataset in PyTorch's form."""

    def __init__(self, encoded: list[bytes], size: int, view: int) -> None:
        self.encoded, self.size, self.transform = encoded, size, _albumentations(view)

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, row: int) -> np.ndarray:
        cv2.setNumThreads(0)
        image = cv2.resize(_decode(self.encoded[row]), (self.size, self.size), interpolation=cv2.INTER_AREA)
        return np.stack([self.transform(image=image)["image"] for _ in range(2)])


def _data_loader(encoded: list[bytes], size: int, view: int, workers: int) -> Any:
    if _albumentations(view) is None:
        return None
    try:
        from torch.utils.data import DataLoader, RandomSampler
    except ImportError:
        return None
    frames: Any = _Frames(encoded, size, view)
    sampler = RandomSampler(frames, replacement=True, num_samples=10**9)
    return DataLoader(
        frames,
        batch_size=_BATCH,
        sampler=sampler,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )


def _exhausting(loader: Iterable[Any], batches: int) -> Callable[[], None]:
    # One iterator for all turns: the start of the workers is not measured.
    read = iter(loader)

    def run() -> None:
        for _ in islice(read, batches):
            pass

    return run


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
