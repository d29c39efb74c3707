"""Measure what millions of frames cost before and between steps: index, batch plan and memory; no pictures.

python -m benchmarks.load
python -m benchmarks.load --frames=10000,1000000 --plans=cross-scan --batches=1000

The frames are synthetic: a hundred per scan, one scan per patient, runs of fourteen planes and of none, ids as long as
those of `ingest`, a tenth of the scans for testing. Each line is a separate process, which repeats the start of a run:
the index from columns of labels, its parts and fingerprint, the plan and its first batch; then batch after batch, from
the start of the second epoch. With `--cache`, the index is read from the file that a run keeps beside its dataset.

Plans: `anatomy`, 32 rows of anatomies x 4 scans and a quarter without a label; `cross-scan`, with second views from
other scans; `scan`, with scans as classes; `natural`, each frame once per epoch.
"""

import argparse
import hashlib
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from awcl_jax.data import selection
from awcl_jax.data.anatomy import FETAL_PLANES_14, UNLABELLED
from awcl_jax.data.sampler import BatchPlan
from awcl_jax.data.scans import ScanIndex
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError
from benchmarks.own_process import in_own_process, memory_mb

PLANS = ("anatomy", "cross-scan", "scan", "natural")
FRAMES_A_SCAN, BATCH_SIZE = 100, 32


def main() -> None:
    """Measure every plan at every size, one after the other; print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", default="10000,100000,1000000,10000000", help="sizes, separated by commas")
    parser.add_argument("--plans", default=",".join(PLANS), help="plans, separated by commas")
    parser.add_argument("--batches", type=int, default=2000, help="planned after the first (default: %(default)s)")
    parser.add_argument("--cache", action="store_true", help="read the index from its cache")
    parser.add_argument("--measure", nargs=2, metavar=("PLAN", "FRAMES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(_measure(args.measure[0], int(args.measure[1]), args.batches, cached=args.cache)))
        return
    plans = args.plans.split(",")
    if unknown := set(plans) - set(PLANS):
        raise InputError(f"Unknown plans {sorted(unknown)}; must be among {', '.join(PLANS)}.")
    print(
        "| frames | plan | index, s | parts, s | plan and first batch, s | all, s | peak MB "
        "| a batch, ms | its partners, ms | slowest, ms | MB more after |\n" + "|---" * 11 + "|"
    )
    for n in map(int, args.frames.split(",")):
        for plan in plans:
            options = [f"--batches={args.batches}", *(["--cache"] if args.cache else [])]
            found = in_own_process("benchmarks.load", "--measure", plan, n, *options)
            print(_row({"frames": n, "plan": plan} | found), flush=True)


def columns(n: int) -> dict:
    """Return labels of n synthetic frames, as arguments of `ScanIndex.from_columns`."""
    frame = np.arange(n, dtype=np.int32)
    scan, within = np.divmod(frame, np.int32(FRAMES_A_SCAN))
    scans = -(-n // FRAMES_A_SCAN)
    names = pa.array([hashlib.sha256(str(number).encode()).hexdigest()[:16] for number in range(scans)])
    scan_ids = names.take(pa.array(scan))
    numbers = pc.utf8_lpad(pa.array(within).cast(pa.string()), 5, "0")
    # Runs of five frames, of 20 kinds, six of which have no name.
    fine = (within // 5 + scan) % 20
    fine = np.where(fine < len(FETAL_PLANES_14.fine), fine, UNLABELLED).astype(np.int32)
    coarse_of = np.array([FETAL_PLANES_14.coarse.index(FETAL_PLANES_14.coarse_of(p)) for p in FETAL_PLANES_14.fine])
    return {
        "frame_ids": pa.chunked_array([pc.binary_join_element_wise(scan_ids, numbers, "/")]),
        "scan_ids": pa.chunked_array([scan_ids]),
        "patient_ids": pa.chunked_array([scan_ids]),
        "machines": pa.chunked_array([pa.array(["one", "other"]).take(pa.array(scan % 2))]),
        "fine": fine,
        "coarse": np.where(fine == UNLABELLED, UNLABELLED, coarse_of[fine]).astype(np.int32),
        "splits": (scan >= 0.9 * scans).astype(np.int32),
        "records": frame,
        "fine_names": FETAL_PLANES_14.fine,
        "coarse_names": FETAL_PLANES_14.coarse,
        "split_names": ("train", "test"),
    }


def _measure(kind: str, n: int, batches: int, *, cached: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        make = _make_cached(n, Path(folder)) if cached else _make_from_columns(n)
        start = time.perf_counter()
        index = make()
        indexed = time.perf_counter()
    assert index is not None
    del make
    train, _ = index.split("train").holdout(0.15, seed=0)
    index.split("test")
    fingerprint = index.fingerprint
    parted = time.perf_counter()
    assert fingerprint
    plan = plan_of(kind, train)
    plan.frames(0)
    plan.partners(0)
    planned = time.perf_counter()
    second_epoch = -(-len(train) // BATCH_SIZE)
    plan.frames(second_epoch)
    plan.frames(second_epoch + 1)
    before = memory_mb("VmRSS")
    frames, partners = np.empty(batches), np.empty(batches)
    for i in range(batches):
        step = second_epoch + 2 + i
        begun = time.perf_counter()
        rows = plan.frames(step)
        middle = time.perf_counter()
        plan.partners(step, rows)
        frames[i], partners[i] = middle - begun, time.perf_counter() - middle
    return {
        "index": indexed - start,
        "parts": parted - indexed,
        "first": planned - parted,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "batch": float(np.median(frames)),
        "partners": float(np.median(partners)),
        "slowest": float(max(frames.max(), partners.max())),
        "more_mb": memory_mb("VmRSS") - before,
    }


def _make_from_columns(n: int) -> Callable[[], ScanIndex]:
    given = columns(n)
    return lambda: ScanIndex.from_columns(Path("made-up"), **given)


def _make_cached(n: int, folder: Path) -> Callable[[], ScanIndex | None]:
    ScanIndex.from_columns(folder, **columns(n))._to_cache("key")
    return lambda: ScanIndex._from_cache(folder, "key")


def plan_of(kind: str, train: ScanIndex) -> BatchPlan:
    """Make the plan of one of PLANS over these frames."""
    positives = {"scan": "scan", "natural": "frame"}.get(kind, "anatomy")
    labels = selection.positive_labels(train, positives, granularity="fine", anatomy_ratio=1.0, seed=0)
    return selection.make_plan(
        train,
        labels,
        positives,
        batch_size=BATCH_SIZE,
        seed=0,
        mode="natural" if kind == "natural" else "balanced",
        anatomies=None,
        scans_per_anatomy=4,
        unlabelled_share=0.0 if kind == "scan" else 0.25,
        pairs="cross_scan" if kind == "cross-scan" else "frame",
    )


def _row(r: dict) -> str:
    total = r["index"] + r["parts"] + r["first"]
    return (
        f"| {r['frames']:,} | {r['plan']} | {r['index']:.2f} | {r['parts']:.2f} | {r['first']:.2f} | {total:.2f} | "
        f"{r['peak_mb']:,.0f} | {r['batch'] * 1e3:.3f} | {r['partners'] * 1e3:.3f} | {r['slowest'] * 1e3:.1f} | "
        f"{r['more_mb']:.1f} |"
    )


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
