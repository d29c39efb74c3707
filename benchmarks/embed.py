"""Measure frames per second of `awcl_jax.embed` against a plain loop, one picture at a time, with OpenCV.

python -m benchmarks.embed RUN PICTURES
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import jax
import numpy as np

from awcl_jax.data.images import find_images
from awcl_jax.data.sources import open_source, read_batches
from awcl_jax.embed import write
from awcl_jax.embed.load import as_function, open_encoder
from awcl_jax.evaluate.encode import FrozenEncoder, encode_batches
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError


@exit_on_bad_input()
def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embed", description=__doc__)
    parser.add_argument("encoder", metavar="ENCODER", help="folder of a run, a checkpoint or an export")
    parser.add_argument("pictures", metavar="PICTURES", type=Path, help="folder of pictures, with subfolders")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each measurement, in turns")
    args = parser.parse_args(argv)
    encoder, files = open_encoder(args.encoder), [args.pictures / name for name in find_images(args.pictures)]
    if not files:
        raise InputError(f"{args.pictures} contains no pictures.")
    ways: dict[str, Callable[[], None]] = {
        "plain loop": lambda: _one_by_one(encoder, files),
        "embed, to Parquet": lambda: _embed(encoder, args.pictures, args.batch_size),
        "  reading alone": lambda: _read(encoder, args.pictures, args.batch_size),
        "  encoding alone": lambda: _encode(encoder, len(files), args.batch_size),
    }
    for run in ways.values():
        run()  # compiles, and fills the system's cache of files
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    device = jax.local_devices()[0].device_kind
    print(
        f"{len(files)} pictures, {encoder.square.size} px, batches of {args.batch_size}, {jax.local_device_count()} "
        f"{device} device(s)\nmedian of {args.repeats} runs in turn; ratio to the plain loop of the turn (least, most)"
    )
    for name, taken in seconds.items():
        ratios = sorted(plain / own for plain, own in zip(seconds["plain loop"], taken, strict=True))
        print(
            f"{name:20} {len(files) / statistics.median(taken):8.0f} frames/s  x {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f}, {ratios[-1]:.2f})"
        )


def _one_by_one(encoder: FrozenEncoder, files: Sequence[Path]) -> None:
    encode = as_function(encoder)
    for file in files:
        image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        assert image is not None, file
        encode(image[None])


def _embed(encoder: FrozenEncoder, pictures: Path, batch_size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "features.parquet"
        source, origin = open_source(pictures), str(pictures)
        write.embed(encoder, source, out, origin=origin, batch_size=batch_size, neighbours=0, picture=None)


def _read(encoder: FrozenEncoder, pictures: Path, batch_size: int) -> None:
    source = open_source(pictures)
    for _ in read_batches(source.reader(encoder.square), len(source), batch_size=batch_size):
        pass


def _encode(encoder: FrozenEncoder, count: int, batch_size: int) -> None:
    images = np.zeros((batch_size, encoder.square.size, encoder.square.size), np.uint8)
    batches = (images[: min(batch_size, count - start)] for start in range(0, count, batch_size))
    for _ in encode_batches(encoder.encode, encoder.variables, batches, batch_size=batch_size):
        pass


if __name__ == "__main__":
    main()
