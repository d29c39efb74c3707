"""Measure how often a run survives faults: a table of faults injected, survived and lost.

python -m benchmarks.faults --out=DIR
python -m benchmarks.faults --times=2 --faults=SIGKILL,damage

A fault is survived if the same command resumes after it, and the finished run has the parameters, optimiser, metrics
and results of an undisturbed run, bit for bit. If the end differs, all faults of that run count as lost. `SIGKILL` ends
the process at ten places, so the default of 10 times is 100 kills; `asked` is SIGTERM and ctrl-C; `damage` corrupts the
latest checkpoint of a killed run; `two processes` kills one of two with SIGKILL, and resumes with one, compared to the
rounding of float32.

Small runs on the simulated frames of the tiny phantom: 24 steps with a checkpoint every other step.
"""

import argparse
import dataclasses
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL

import jax
import numpy as np
from tqdm import tqdm

from awcl_jax.ingest.prepare import prepare_phantom
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import write_whole
from awcl_jax.train.metrics import METRICS_FILE
from tests.helpers.killed_runs import STEPS, fields, final_state, numbers, starts

FAULTS = ("SIGKILL", "asked", "damage", "two processes")
_PLACES = {
    "batch": "with the next batch",
    "before save": "before a save",
    "save": "at the begin of a save",
    "slow save": "30 ms into a save",
    "saved": "after a save",
    "written": "between a line of metrics and the save",
    "torn line": "within a line of metrics",
    "evaluation": "10 ms into an evaluation",
    "clock": "at a random moment of the first 2 s",
    "replace results.json": "before the results are there",
}
_ASKED = {"SIGTERM": "SIGTERM", "SIGINT": "ctrl-C", "SIGINT twice": "ctrl-C twice"}
_STATUS = {"SIGTERM": 75, "SIGINT": 75, "SIGINT twice": 130}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: the fault, how often it was injected, and how often the run survived."""

    fault: str
    injected: int
    survived: int


@dataclasses.dataclass(frozen=True)
class Bench:
    """The runs that faults are injected into.

    Attributes:
      folder: of all runs.
      config: of each run.
      unbroken: folder of the undisturbed run.
      times: of each fault.
      rng: chooses steps and moments.
    """

    folder: Path
    config: dict[str, object]
    unbroken: Path
    times: int
    rng: random.Random


def main() -> None:
    """Inject all faults and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="of each fault at each place (default: %(default)s)")
    parser.add_argument("--faults", default=",".join(FAULTS), help="separated by commas (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the steps and moments (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for faults.md")
    args = parser.parse_args()
    if unknown := set(args.faults.split(",")) - set(FAULTS):
        raise InputError(f"Unknown faults {sorted(unknown)}; must be among {', '.join(FAULTS)}.")
    if args.times < 1:
        raise InputError(f"--times must be >= 1; got {args.times}.")
    kinds = {"SIGKILL": killed, "asked": asked, "damage": damaged, "two processes": one_of_two}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = fields(prepare_phantom("tiny"))
        unbroken = Path(folder) / "unbroken"
        starts(unbroken, config, [None])
        bench = Bench(Path(folder), config, unbroken, args.times, random.Random(args.seed))
        for row in tqdm(row for name in args.faults.split(",") for row in kinds[name](bench)):
            rows.append(row)
            tqdm.write(f"{row.fault}: {row.survived} of {row.injected}")
    text = table(rows)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_whole(args.out / "faults.md", text + "\n")


def killed(bench: Bench) -> Iterator[Row]:
    """Kill a run with SIGKILL at every place, at random steps, one after the other; one run per place."""
    for place, description in _PLACES.items():
        if place == "clock":
            faults: list = [[place, bench.rng.uniform(0, 2)] for _ in range(bench.times)]
        elif place == "replace results.json":
            faults = [[place, 0]] * bench.times
        else:
            faults = [[place, step] for step in sorted(bench.rng.choices(range(2, STEPS), k=bench.times))]
        workdir = bench.folder / f"killed-{place.replace(' ', '-')}"
        statuses, output = starts(workdir, bench.config, [*faults, None])
        if wrong := set(statuses) - {0, -signal.SIGKILL}:
            raise RuntimeError(f"A start ended with {sorted(wrong)}:\n{output[-2000:]}")
        # A run that ends before the moment was not killed.
        injected = sum(status == -signal.SIGKILL for status in statuses)
        alike = statuses[-1] == 0 and state_of(workdir) == state_of(bench.unbroken)
        yield Row(f"SIGKILL {description}", injected, injected if alike else 0)


def asked(bench: Bench) -> Iterator[Row]:
    """Send SIGTERM and ctrl-C at random steps."""
    for name, description in _ASKED.items():
        steps = sorted(bench.rng.sample(range(1, STEPS), k=min(bench.times, STEPS - 1)))
        workdir = bench.folder / f"asked-{name.replace(' ', '-')}"
        statuses, _ = starts(workdir, bench.config, [*([name, step] for step in steps), None])
        alike = statuses == [_STATUS[name]] * len(steps) + [0] and state_of(workdir) == state_of(bench.unbroken)
        yield Row(description, len(steps), len(steps) if alike else 0)


def damaged(bench: Bench) -> Iterator[Row]:
    """Damage the latest checkpoint of a killed run: cut a file, flip a bit, or delete a file."""
    source = bench.folder / "stopped"
    starts(source, bench.config, [["before save", STEPS]])
    latest = max(int(folder.name) for folder in (source / "checkpoints").iterdir() if folder.name.isdecimal())
    for description, harm in _HARMS.items():
        survived = 0
        for number in range(bench.times):
            workdir = bench.folder / f"harmed-{number}-{len(description)}"
            shutil.copytree(source, workdir)
            files = [file for file in (workdir / "checkpoints" / str(latest)).rglob("*") if file.is_file()]
            harm(bench.rng.choice(sorted(files)), bench.rng)
            statuses, _ = starts(workdir, bench.config, [None])
            survived += statuses == [0] and state_of(workdir) == state_of(bench.unbroken)
            shutil.rmtree(workdir)
        yield Row(f"latest checkpoint: {description}", bench.times, survived)


def one_of_two(bench: Bench) -> Iterator[Row]:
    """Kill one of two processes at a random moment; the other must exit by itself, and one process resumes alone."""
    survived = 0
    for number in range(bench.times):
        workdir = bench.folder / f"pair-{number}"
        options = [f"--config.{name}={value}" for name, value in bench.config.items()]
        command = [sys.executable, "-m", "awcl_jax.main", "--config=configs/fine.py:tiny", f"--workdir={workdir}"]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        flags = [f"--coordinator=localhost:{port}", "--processes=2", "--heartbeat=10"]
        both = [
            subprocess.Popen([*command, *options, *flags, f"--process={i}"], stdout=DEVNULL, stderr=DEVNULL)
            for i in (0, 1)
        ]
        metrics = workdir / METRICS_FILE
        while all(process.poll() is None for process in both) and not (metrics.is_file() and metrics.stat().st_size):
            time.sleep(0.01)
        time.sleep(bench.rng.uniform(0, 2))
        lost, left = bench.rng.sample(both, k=2)
        lost.kill()
        # Unless the run has just ended.
        ended = left.wait(timeout=300) in (0, 128 + signal.SIGABRT)
        alone = subprocess.run([*command, *options, "--processes=1"], stdout=DEVNULL, stderr=DEVNULL, check=False)
        survived += ended and alone.returncode == 0 and near(state_of(workdir), state_of(bench.unbroken))
        shutil.rmtree(workdir)
    yield Row("one of two processes killed", bench.times, survived)


def _cut(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))] if content else content)


def _flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)


_HARMS: dict[str, Callable[[Path, random.Random], None]] = {
    "a file cut": _cut,
    "a bit flipped": _flip,
    "a file deleted": lambda file, rng: file.unlink(),
}


def state_of(workdir: Path) -> dict[str, object]:
    """Return everything compared at the end: bytes of the last checkpoint's arrays, metrics and results."""
    if not (workdir / "checkpoints" / str(STEPS)).is_dir():
        return {}
    leaves = jax.tree_util.tree_leaves_with_path(final_state(workdir))
    results = json.loads((workdir / "results.json").read_text())
    del results["peak_memory_mb"]
    return {
        **{jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves},
        "metrics": numbers(workdir),
        "results": results,
    }


def near(state: dict[str, object], expected: dict[str, object]) -> bool:
    """Return whether every step was taken once and the losses agree to the rounding of float32."""

    def losses(of: dict[str, object]) -> dict[int, float]:
        lines = of.get("metrics", [])
        assert isinstance(lines, list)
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    own, reference = losses(state), losses(expected)
    return own.keys() == reference.keys() and np.allclose(
        [own[step] for step in reference], list(reference.values()), rtol=1e-4, atol=0
    )


def table(rows: list[Row]) -> str:
    """Return the table in Markdown."""
    lines = ["| fault | injected | survived | lost |", "|---|---|---|---|"]
    lines += [f"| {row.fault} | {row.injected} | {row.survived} | {row.injected - row.survived} |" for row in rows]
    total, survived = sum(row.injected for row in rows), sum(row.survived for row in rows)
    return "\n".join([*lines, f"| all | {total} | {survived} | {total - survived} |"])


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
