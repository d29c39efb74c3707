"""Measure everything that needs a GPU in one command of under nine minutes, and check its numbers against the CPU's.

python -m benchmarks.on_gpu --out=DIR
python -m benchmarks.on_gpu --out=DIR --wheels=WHEELS --parts=machine,numbers,loss
python -m benchmarks.on_gpu --out=DIR --rehearse    # the same on a CPU at tiny sizes, to see that all of it runs

For a machine that has a GPU, JAX for CUDA and, to compare with, PyTorch; no network is needed. Run it in a clone of
this repository. Packages that the machine lacks are taken from a folder of wheels, for this command alone.

Parts, most useful first (where the time ends, the last ones are left out for the next start):

machine         peak of matrix products by type, bandwidth of the memory; all shares below are of peaks measured here
numbers         loss, gradient and a training step on the GPU against the CPU of the same machine, with tolerances
loss            the loss with its gradient at 8,192 to 1,048,576 rows (`benchmarks.loss`)
step-resnet50, step-vit_base, step-resnet18
                the whole pretraining step in bfloat16 at 224 px, against PyTorch with torch.compile, channels last and
                autocast, in turns (`benchmarks.step`)
waiting         the share of a step of 256 frames that waits for data, for the copy to the device and for the host
exports         an exported encoder as weights, as a function of jax.export and as ONNX
twice           whether a step repeats bit for bit, also with deterministic operations, and what those cost

Each part is a process with a time limit and writes DIR/PART.json. If one fails, its reason is in the table and the end
of its output in its file, and the others are measured all the same. Run the command again to measure what is missing.
A line of the table is a median with the least and the most of all turns; DIR/results.json has all parts, DIR/table.md
the table. The exit status is 1 while a part is missing.
"""

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import write_whole

PARTS = {
    "machine": 60,
    "numbers": 120,
    "loss": 140,
    "step-resnet50": 200,
    "waiting": 90,
    "step-vit_base": 150,
    "exports": 80,
    "twice": 100,
    "step-resnet18": 120,
}
"""Part of `benchmarks.gpu_parts` -> its limit in seconds; in order of worth, so that the last are left out."""

_LEAST = 15  # seconds: with less left, no part is begun
_NO_GPU = 3  # exit status of a part
_KEPT = 8000  # characters of a failed part's output


def main() -> None:
    """Measure what is missing, part by part; print the table."""
    args = _parser().parse_args()
    if not (args.part or args.twice or args.cpu_numbers or args.cpu_features):
        sys.exit(_measure_all(args))
    # Imported in the processes of parts alone: the machine may lack what it imports, until it has the wheels.
    from benchmarks import gpu_numbers, gpu_parts, gpu_sizes

    sizes = gpu_sizes.REHEARSAL if args.rehearse else gpu_sizes.FULL
    if args.cpu_numbers:
        gpu_numbers.cpu_numbers(sizes, args.cpu_numbers)
    elif args.cpu_features:
        gpu_parts.write_features(args.cpu_features)
    elif args.twice:
        print(json.dumps(gpu_numbers.step_twice(sizes)))
    else:
        sys.exit(_measure(args.part, args.out, sizes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("on_gpu"), help="folder of the results (default: %(default)s)")
    parser.add_argument("--wheels", type=Path, help="folder of wheels; those that the machine lacks are used")
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas (default: all)")
    parser.add_argument("--seconds", type=float, default=520, help="limit of the whole command (default: %(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="use the CPU and tiny sizes, without time limits")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--twice", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cpu_numbers", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cpu_features", type=Path, help=argparse.SUPPRESS)
    return parser


def _measure_all(args: argparse.Namespace) -> int:
    """Start a process for each missing part; return the exit status."""
    begun, seconds = time.monotonic(), math.inf if args.rehearse else args.seconds
    names = args.parts.split(",")
    if unknown := set(names) - PARTS.keys():
        raise InputError(f"Unknown parts {sorted(unknown)}; must be among {', '.join(PARTS)}.")
    for found in map(_read, _files(args.out)):
        if found["rehearsal"] != args.rehearse:
            kind = "a rehearsal" if found["rehearsal"] else "a measurement"
            raise InputError(f"{args.out} has the results of {kind}. Choose another --out.")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, _ended_by_exceptions():
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # PyTorch needs memory beside JAX
        if args.rehearse:
            environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if args.wheels and (new := install(args.wheels, Path(scratch) / "site")):
            print(f"from {args.wheels}: {', '.join(new)}", flush=True)
            paths = [str(Path(scratch) / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment["PYTHONPATH"] = os.pathsep.join(paths)
        for name in (name for name in PARTS if name in names):
            file = args.out / f"{name}.json"
            if file.exists() and _read(file)["complete"]:
                print(f"{name}: measured before", flush=True)
                continue
            left = begun + seconds - time.monotonic()
            if left < _LEAST:
                print(f"{name}: left out, {max(left, 0):.0f} s of --seconds={args.seconds:g} are left", flush=True)
                continue
            command = [sys.executable, "-m", "benchmarks.on_gpu", f"--part={name}", f"--out={args.out}"]
            command += ["--rehearse"] if args.rehearse else []
            limit = None if args.rehearse else min(PARTS[name], left)
            status = _run(command, environment, limit=limit, file=file, args=args)
            error = _read(file)["error"]
            print(f"{name}: {error or 'measured'} (after {time.monotonic() - begun:.0f} s)", flush=True)
            if status == _NO_GPU:
                raise InputError(error)
    parts = [_read(file) for file in _files(args.out)]
    table = "\n".join(_table(parts))
    print(f"\n{table}")
    write_whole(args.out / "table.md", f"{table}\n")
    write_whole(args.out / "results.json", json.dumps(parts, indent=1) + "\n")
    return 0 if {one["part"] for one in parts if one["complete"]} >= {*names} else 1


def install(wheels: Path, site: Path) -> list[str]:
    """Install the wheels whose packages this Python lacks into `site`; return the packages.

    Raises:
      InputError: the folder has no wheels, or pip refuses one.
    """
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise InputError(f"{wheels} has no wheels (*.whl). Download them with `pip download`, or leave out --wheels.")
    new = {file.name.split("-")[0]: file for file in files if not _is_installed(file.name.split("-")[0])}
    if new:
        options = ("--quiet", "--no-index", "--no-deps", "--no-compile", f"--find-links={wheels}", f"--target={site}")
        command = [sys.executable, "-m", "pip", "install", *options, *map(str, new.values())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"pip cannot install the wheels of {wheels}: {_last_line(done.stderr)}")
    return [*new]


def _is_installed(name: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution(name)
        return True
    return False


def _run(
    command: list[str], environment: dict[str, str], *, limit: float | None, file: Path, args: argparse.Namespace
) -> int | None:
    """Run a part in its time limit and complete its file. Return its exit status, None if it was stopped."""
    file.unlink(missing_ok=True)
    environment = environment | {"PYTHONUNBUFFERED": "1"}  # else what was printed first would come after an error
    # A session of its own, so that the processes which it has started end with it.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            status: int | None = process.wait(limit)
            ended = f"ended with status {status}: "
        except subprocess.TimeoutExpired:
            status, ended = None, f"stopped after {limit:.0f} s, its time limit"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        printed = output.read().decode(errors="replace")
    found = _read(file) if file.exists() else _nothing(file.stem, rehearsal=args.rehearse)
    if not found["complete"]:
        ended += "" if status is None else _last_line(printed)
        _write(file, found | {"error": found["error"] or ended, "output": printed[-_KEPT:]})
    return status


@contextlib.contextmanager
def _ended_by_exceptions() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that the part which runs is ended, too."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _measure(name: str, out: Path, sizes: Any) -> int:
    """Measure one part in this process; write its file after every line. Return the exit status."""
    from benchmarks import gpu_parts, gpu_sizes

    file, begun = out / f"{name}.json", time.monotonic()
    found = _nothing(name, rehearsal=sizes is gpu_sizes.REHEARSAL)

    def add(what: str, unit: str, values: Sequence[float]) -> None:
        found["rows"].append({"what": what, "unit": unit, "values": [*map(float, values)]})
        _write(file, found)

    def note(text: str) -> None:
        found["notes"].append(text)
        _write(file, found)

    status = 0
    try:
        gpu_parts.PARTS[name](add, note, sizes)
        found["complete"] = True
    except Exception as error:
        traceback.print_exc()
        lines = str(error).splitlines() or [""]
        found["error"] = lines[0] if isinstance(error, InputError) else f"{type(error).__name__}: {lines[0]}"
        status = _NO_GPU if isinstance(error, gpu_sizes.NoGpuError) else 1
    _write(file, found | {"seconds": round(time.monotonic() - begun, 1)})
    return status


def _nothing(name: str, *, rehearsal: bool) -> dict[str, Any]:
    return {
        "part": name,
        "rehearsal": rehearsal,
        "complete": False,
        "error": None,
        "seconds": None,
        "rows": [],
        "notes": [],
    }


def _files(out: Path) -> list[Path]:
    return [file for name in PARTS if (file := out / f"{name}.json").exists()]


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def _write(file: Path, found: dict[str, Any]) -> None:
    write_whole(file, json.dumps(found, indent=1) + "\n")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


def _table(found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table, then what is no number."""
    if any(one["rehearsal"] for one in found):
        yield "A rehearsal on a CPU at tiny sizes: these numbers mean nothing.\n"
    yield "| part | what | median (least, most) | unit | turns |\n|---|---|---|---|---|"
    for one in found:
        for row in one["rows"]:
            values = row["values"]
            middle, least, most = (f"{x:.3g}" for x in (statistics.median(values), min(values), max(values)))
            spread = f"{middle} ({least}, {most})" if len(values) > 1 else middle
            yield f"| {one['part']} | {row['what']} | {spread} | {row['unit']} | {len(values)} |"
    yield ""
    for one in found:
        yield from (f"- {one['part']}: {note}" for note in one["notes"])
        if one["error"]:
            yield f"- {one['part']} FAILED: {one['error']}"


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
