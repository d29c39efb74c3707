"""Measure how time and memory grow: each part of a run against its size, with the measured slopes.

python -m benchmarks.growth --out=DIR
python -m benchmarks.growth --parts="step: batch,kNN: frames"

A slope is the exponent of growth between the two largest sizes: 1 if twice the size takes twice as long, 0 if the size
does not matter. The reason beside it gives the expected maximum. Each size runs in a separate process; its time is the
best of three, after one that compiles, and its memory is the rise of the process's peak.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from awcl_jax.runtime import figures
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import write_whole
from benchmarks.own_process import forget_peak, in_own_process, memory_mb

_FEATURES, _CLASSES = 128, 14


class Part(NamedTuple):
    """A measured part: `make` returns, for a size, the call to time."""

    make: Callable[[int], Callable[[], object]]
    sizes: tuple[int, ...]
    reason: str


def main() -> None:
    """Measure all parts at all sizes, one after the other; write a table and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="separated by commas (default: all)")
    parser.add_argument("--out", type=Path, help="folder for growth.md, growth.json and growth.png")
    parser.add_argument("--measure", nargs=2, metavar=("PART", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(_measure(PARTS[args.measure[0]].make, int(args.measure[1]))))
        return
    names = args.parts.split(",")
    if unknown := set(names) - set(PARTS):
        raise InputError(f"Unknown parts {sorted(unknown)}; must be among {', '.join(PARTS)}.")
    lines = ["| part: against | from | to | seconds at most | slope | MB at most | slope | reason |", "|---" * 8 + "|"]
    print("\n".join(lines), flush=True)
    measured: dict[str, list[dict[str, float]]] = {}
    for name in names:
        measured[name] = [in_own_process("benchmarks.growth", "--measure", name, size) for size in PARTS[name].sizes]
        lines.append(_row(name, measured[name]))
        print(lines[-1], flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_whole(args.out / "growth.json", json.dumps(measured, indent=2) + "\n")
        write_whole(args.out / "growth.md", "\n".join(lines) + "\n")
        _plot(measured, args.out / "growth.png")


def _measure(make: Callable[[int], Callable[[], object]], size: int) -> dict[str, float]:
    call = make(size)
    before = memory_mb("VmRSS")
    forget_peak()
    call()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {"size": size, "seconds": min(seconds), "mb": max(memory_mb("VmHWM") - before, 0.0)}


def _index(frames: int) -> Callable[[], object]:
    from awcl_jax.data.scans import ScanIndex
    from benchmarks.load import columns

    given = columns(frames)
    return lambda: ScanIndex.from_columns(Path("made-up"), **given).split("train").fingerprint


def _plan_of(frames: int, kind: str = "anatomy") -> Callable[[], object]:
    from awcl_jax.data.scans import ScanIndex
    from benchmarks.load import columns, plan_of

    train = ScanIndex.from_columns(Path("made-up"), **columns(frames)).split("train")
    return lambda: plan_of(kind, train).frames(0)


def _hundred_batches(frames: int) -> Callable[[], object]:
    from awcl_jax.data.scans import ScanIndex
    from benchmarks.load import columns, plan_of

    plan = plan_of("anatomy", ScanIndex.from_columns(Path("made-up"), **columns(frames)).split("train"))
    return lambda: [plan.frames(step) for step in range(100)]


def _pipeline(batch: int = 32, size: int = 96) -> Callable[[], object]:
    from awcl_jax.data import pipeline
    from awcl_jax.data.reader import FrameReader
    from awcl_jax.data.sampler import EpochPlan
    from awcl_jax.data.scans import ScanIndex
    from awcl_jax.ingest import prepare

    index = ScanIndex.from_dataset(prepare.prepare_phantom("tiny"))
    plan = EpochPlan(np.arange(len(index)), batch_size=batch, seed=0)
    reader = FrameReader(index, size, 0)
    return lambda: list(pipeline.supervised_batches(plan, {"image": reader.read}, start=0, stop=8))


def _step(batch: int = 32, size: int = 64, devices: int = 1) -> Callable[[], object]:
    import jax

    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    from benchmarks.step import our_step

    steps, *_ = our_step("resnet18", 0.25, size, batch, "float32")
    return lambda: steps(3)


def _loss(rows: int) -> Callable[[], object]:
    import jax
    import jax.numpy as jnp

    from awcl_jax.losses.awcl import awcl_loss

    rng = np.random.default_rng(0)
    z = rng.normal(size=(rows, _FEATURES)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    ids, groups = jnp.arange(rows), jnp.asarray(rng.integers(0, _CLASSES, rows))

    def mean_loss(z: jax.Array) -> jax.Array:
        same: Any = {"anchor_ids": ids, "contrast_ids": ids, "anchor_groups": groups, "contrast_groups": groups}
        return awcl_loss(z, z, temperature=0.1, **same).mean()

    call = jax.jit(jax.value_and_grad(mean_loss))
    return lambda: jax.block_until_ready(call(jnp.asarray(z)))


def _features(frames: int, seed: int) -> Any:
    from awcl_jax.evaluate.features import FeatureSet

    rng = np.random.default_rng(seed)
    labels = rng.integers(0, _CLASSES, frames)
    features = rng.normal(size=(frames, _FEATURES)) + np.eye(_CLASSES, _FEATURES)[labels]
    # Different patients for each seed.
    return FeatureSet(features.astype(np.float32), labels, seed * frames + np.arange(frames) // 10)


def _knn(frames: int) -> Callable[[], object]:
    from awcl_jax.evaluate.knn import KNN

    train, test = _features(frames, 0), _features(frames, 1)
    return lambda: KNN().run(train, test, [str(name) for name in range(_CLASSES)])


def _probe(frames: int) -> Callable[[], object]:
    from awcl_jax.evaluate.linear_probe import LinearProbe

    train, val, test = (_features(frames, seed) for seed in range(3))
    return lambda: LinearProbe().run(train, val, test, [str(name) for name in range(_CLASSES)])


def _ingest(frames: int) -> Callable[[], object]:
    from benchmarks.ingest import ingest_pictures, write_pictures

    folder = tempfile.TemporaryDirectory()
    files = write_pictures(Path(folder.name), frames)

    def run() -> None:
        assert folder  # keeps the folder while this call exists
        ingest_pictures(files)

    return run


_LINEAR = "each is looked at once"
PARTS = {
    "index: frames": Part(_index, (10**4, 10**5, 10**6), _LINEAR),
    "plan and first batch: frames": Part(_plan_of, (10**4, 10**5, 10**6), _LINEAR),
    "plan by scan: scans": Part(lambda scans: _plan_of(100 * scans, "scan"), (100, 1000, 10**4), _LINEAR),
    "100 batches: frames": Part(_hundred_batches, (10**4, 10**5, 10**6), "drawn, not searched for"),
    "pipeline: batch": Part(lambda batch: _pipeline(batch=batch), (16, 32, 64, 128), _LINEAR),
    "pipeline: edge": Part(lambda size: _pipeline(size=size), (64, 128, 256), "decoding does not see it"),
    "step: batch": Part(lambda batch: _step(batch=batch), (16, 32, 64, 128), "the encoder is linear in it"),
    "step: edge": Part(lambda size: _step(size=size), (32, 64, 128), "pixels: the square"),
    "step: devices of one CPU": Part(lambda devices: _step(devices=devices), (1, 2, 4, 8), "the same work"),
    "loss: rows": Part(_loss, (1024, 2048, 4096, 8192), "all pairs: the square; memory linear, in blocks"),
    "kNN: frames": Part(_knn, (1000, 2000, 4000, 8000), "all pairs: the square; memory linear, in blocks"),
    "linear probe: frames": Part(_probe, (1000, 2000, 4000, 8000), _LINEAR),
    "ingest: frames": Part(_ingest, (50, 100, 200), _LINEAR),
}


def _slope(points: list[dict[str, float]], field: str) -> str:
    (one, other) = points[-2:]
    # Below a megabyte the measurement is noise.
    if min(one[field], other[field]) < (1 if field == "mb" else 1e-6):
        return ""
    return f"{math.log(other[field] / one[field]) / math.log(other['size'] / one['size']):.2f}"


def _row(name: str, points: list[dict[str, float]]) -> str:
    last = points[-1]
    return (
        f"| {name} | {points[0]['size']:,} | {last['size']:,} | {last['seconds']:.3g} | {_slope(points, 'seconds')} | "
        f"{last['mb']:,.0f} | {_slope(points, 'mb')} | {PARTS[name].reason} |"
    )


def _plot(measured: dict[str, list[dict[str, float]]], out: Path) -> None:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for ax, (field, title) in zip(figure.subplots(1, 2), (("seconds", "time"), ("mb", "memory")), strict=True):
        for number, (name, points) in enumerate(measured.items()):
            # The rise of a process's memory is not accurate to a megabyte.
            shown = [point for point in points if field == "seconds" or point[field] > 5]
            if shown:
                start = shown[0]
                ax.loglog(
                    [point["size"] / start["size"] for point in shown],
                    [point[field] / start[field] for point in shown],
                    marker="o",
                    color=f"C{number % 10}",
                    linestyle="-" if number < 10 else "--",
                    label=name,
                )
        ax.set(title=title, xlabel="times the smallest size", ylabel="times its cost")
        ax.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    figures.save(figure, out, dpi=120)


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
