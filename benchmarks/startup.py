"""Measure the seconds from the command to its first step, at a first and a second start, beside imports alone.

python -m benchmarks.startup
python -m benchmarks.startup --config=configs/fine.py:tiny --turns=5
python -m benchmarks.startup --config.model.width_factor=1 --config.data.size=128 --config.augment.size=112

The first start has an empty cache of compiled programs, the second has the first's cache; the dataset exists already. A
start ends with the first step in `metrics.jsonl`. `import jax`, or `import torch`, is a lower bound. Other options are
passed to the run. On a machine that others use, too, core seconds (of all threads and processes) change less.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.metrics import METRICS_FILE


def main() -> None:
    """Measure in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/fine.py", help="of the run (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of each (default: %(default)s)")
    args, options = parser.parse_known_args()
    command = [f"--config={args.config}", *options]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as for a user: modules are compiled only at the first start
    _until_first_step(command, compiled=None)  # makes the dataset
    seconds: dict[str, list[Taken]] = {}
    for _ in range(args.turns):
        with tempfile.TemporaryDirectory() as compiled:
            taken = {
                "import jax": _seconds("-c", "import jax; jax.devices()"),
                "import torch": _seconds("-c", "import torch"),
                "--help": _seconds("-m", "awcl_jax.main", "--help"),
                "first start, to its first step": _until_first_step(command, compiled),
                "second start, to its first step": _until_first_step(command, compiled),
            }
        for name, value in taken.items():
            seconds.setdefault(name, []).append(value)
    print(f"{os.cpu_count()} cores, {args.turns} turns")
    print("\n| what | seconds (least, most) | core seconds (least, most) |\n|---|---|---|")
    for name, values in seconds.items():
        columns = [f"{statistics.median(of):.2f} ({min(of):.2f}, {max(of):.2f})" for of in zip(*values, strict=True)]
        print(f"| {name} | {' | '.join(columns)} |")


class Taken(NamedTuple):
    """Seconds by the clock, and of all cores together."""

    seconds: float
    core_seconds: float


def _core_seconds() -> float:
    """Return what child processes that have ended took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _seconds(*command: str) -> Taken:
    start, before = time.perf_counter(), _core_seconds()
    subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return Taken(time.perf_counter() - start, _core_seconds() - before)


def _until_first_step(options: list[str], compiled: str | None) -> Taken:
    environment = os.environ | ({"JAX_COMPILATION_CACHE_DIR": compiled} if compiled else {})
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [sys.executable, "-m", "awcl_jax.main", *options, f"--workdir={workdir}"]
        start, before = time.perf_counter(), _core_seconds()
        with subprocess.Popen(
            [*command, "--config.train.log_every=1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        ) as run:
            metrics = workdir / METRICS_FILE
            while not (metrics.is_file() and metrics.stat().st_size):
                if run.poll() is not None:
                    raise InputError(f"`{' '.join(command)}` ended with status {run.returncode} before its first step.")
                time.sleep(0.01)
            taken = time.perf_counter() - start
            run.terminate()
    return Taken(taken, _core_seconds() - before)


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
