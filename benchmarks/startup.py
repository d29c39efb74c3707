"""Measure the seconds from the command to its first step, at a first and a second start, beside imports alone.

python -m benchmarks.startup
python -m benchmarks.startup --config=configs/fine.py:tiny --turns=5

The first start has an empty cache of compiled programs, the second has the first's cache; the dataset exists already. A
start ends with the first step in `metrics.jsonl`. `import jax`, or `import torch`, is a lower bound.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.metrics import METRICS_FILE


def main() -> None:
    """Measure in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/fine.py", help="of the run (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of each (default: %(default)s)")
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as for a user: modules are compiled only at the first start
    _until_first_step(args.config, compiled=None)  # makes the dataset
    seconds: dict[str, list[float]] = {}
    for _ in range(args.turns):
        with tempfile.TemporaryDirectory() as compiled:
            taken = {
                "import jax": _seconds("-c", "import jax; jax.devices()"),
                "import torch": _seconds("-c", "import torch"),
                "--help": _seconds("-m", "awcl_jax.main", "--help"),
                "first start, to its first step": _until_first_step(args.config, compiled),
                "second start, to its first step": _until_first_step(args.config, compiled),
            }
        for name, value in taken.items():
            seconds.setdefault(name, []).append(value)
    print(f"{os.cpu_count()} cores, {args.turns} turns\n\n| what | seconds (least, most) |\n|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f}, {max(values):.2f}) |")


def _seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


def _until_first_step(config: str, compiled: str | None) -> float:
    environment = os.environ | ({"JAX_COMPILATION_CACHE_DIR": compiled} if compiled else {})
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [sys.executable, "-m", "awcl_jax.main", f"--config={config}", f"--workdir={workdir}"]
        start = time.perf_counter()
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
    return taken


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
