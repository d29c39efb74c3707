"""Runs that are stopped in every way that happens."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import pytest

from tests.helpers.killed_runs import STEPS, assert_same_to_rounding, fields, final_state, numbers, starts

ROOT = Path(__file__).parents[2]
# In the order of the run, which has a checkpoint every other step: most starts get further than the one before.
FAULTS = [
    *(["replace config.json", 0], ["batch", 1], ["written", 2], ["before save", 2], ["save", 2], ["torn line", 4]),
    *(["saved", 4], ["replace metrics.jsonl", 0], ["slow save", 6], ["evaluation", 6], ["clock", 0.05], ["clock", 0.5]),
    *(["saved", 12], ["evaluation", 12], ["written", 14], ["torn line", 18], ["slow save", 20], ["evaluation", 24]),
    *(["saved", 24], ["replace results.json", 0]),
]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu"} | more


def results(workdir: Path):
    return json.loads((workdir / "results.json").read_text()) | {"peak_memory_mb": None}


@pytest.fixture(scope="module")
def unbroken(phantom, tmp_path_factory) -> Path:
    """Return the folder of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("survival") / "unbroken"
    statuses, said = starts(workdir, fields(phantom), [None])
    assert statuses == [0], said
    return workdir


def assert_same_bits(workdir: Path, expected: Path) -> None:
    chex.assert_trees_all_equal(final_state(workdir, STEPS), final_state(expected, STEPS))
    assert numbers(workdir) == numbers(expected)
    assert results(workdir) == results(expected)


@pytest.mark.slow
def test_a_run_killed_many_times_ends_bit_for_bit_the_same(phantom, unbroken):
    assert len(FAULTS) >= 20
    killed = unbroken.with_name("killed")
    statuses, said = starts(killed, fields(phantom), [*FAULTS, None])
    assert statuses == [-signal.SIGKILL] * len(FAULTS) + [0], said
    assert_same_bits(killed, unbroken)
    assert {file.name for file in killed.iterdir()} == {file.name for file in unbroken.iterdir()}


@pytest.mark.slow
def test_a_slow_disk_changes_nothing_but_the_time(phantom, unbroken):
    workdir = unbroken.with_name("slow")
    statuses, said = starts(workdir, fields(phantom), [["slow disk", 0.2]])
    assert statuses == [0], said
    assert_same_bits(workdir, unbroken)


@pytest.mark.slow
def test_a_run_asked_to_stop_saves_and_resumes_bit_for_bit(phantom, unbroken):
    workdir = unbroken.with_name("asked")
    never = fields(phantom) | {"train.checkpoint_every": 1000}
    asked = [["SIGTERM stream", 3], ["SIGINT twice", 5], ["SIGINT", 6], ["SIGTERM", 24]]
    statuses, said = starts(workdir, never, [*asked, None])
    assert statuses == [75, 130, 75, 75, 0], said
    assert [line for line in said.splitlines() if "Resuming" in line] == [
        *("Resuming from step 3 of 24.", "Resuming from step 3 of 24."),
        *("Resuming from step 6 of 24.", "Resuming from step 24 of 24."),
    ]
    assert "stopped after step 6 of 24 (saved); rerun the same command to resume" in said
    assert_same_bits(workdir, unbroken)


@pytest.mark.slow
def test_a_damaged_checkpoint_makes_a_run_use_the_previous_one(phantom, unbroken):
    workdir = unbroken.with_name("damaged")
    shutil.copytree(unbroken, workdir)
    largest = max((workdir / "checkpoints" / str(STEPS)).rglob("*"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])  # its end may be of no array
    (workdir / "results.json").unlink()
    statuses, said = starts(workdir, fields(phantom), [None])
    assert statuses == [0], said
    assert "warning: The checkpoint of step 24" in said
    assert "Resuming from step 22 of 24." in said
    assert_same_bits(workdir, unbroken)


class Pair:
    """A run of two processes, with the arguments to start it again."""

    def __init__(self, unbroken: Path, settings: dict, workdir: Path):
        options = [f"--config.{name}={value}" for name, value in settings.items()]
        self.arguments = ["--config=configs/fine.py:tiny", *options, f"--workdir={workdir}"]
        self.shared = {"JAX_COMPILATION_CACHE_DIR": str(unbroken.parent / "compiled-together")}
        self.metrics = workdir / "metrics.jsonl"

    def start(self, *more: str, dies: tuple = (), **variables: str) -> subprocess.Popen:
        """Start a process, which kills itself at the fault `dies`."""
        program = ["tests.helpers.dying_main", *map(str, dies)] if dies else ["awcl_jax.main"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, "-m", *program, *self.arguments, *more]
        return subprocess.Popen(command, cwd=ROOT, env=environment(**self.shared, **variables), **pipes)

    def both(self, port: int) -> list[subprocess.Popen]:
        """Start both processes, and wait until they take steps."""
        flags = (f"--coordinator=localhost:{port}", "--processes=2", "--heartbeat=10")
        both = [self.start(*flags, f"--process={number}") for number in (0, 1)]
        while all(process.poll() is None for process in both) and not (
            self.metrics.is_file() and self.metrics.stat().st_size
        ):
            time.sleep(0.01)
        return both


@pytest.mark.slow
def test_of_two_processes_one_is_asked_both_stop_and_one_resumes(phantom, unbroken, unused_port):
    workdir = unbroken.with_name("together")
    pair = Pair(unbroken, fields(phantom, **{"train.checkpoint_every": 1000}), workdir)
    both = pair.both(unused_port)
    both[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [75, 75], said
    stopped = [re.search(r"stopped after step (\d+) of 24", errors).group(1) for _, errors in said]
    assert stopped[0] == stopped[1]
    # By one process, and on four devices instead of two.
    alone = pair.start("--processes=1", XLA_FLAGS="--xla_force_host_platform_device_count=4")
    output, errors = alone.communicate(timeout=300)
    assert alone.returncode == 0, errors
    assert f"Resuming from step {stopped[0]} of 24." in output
    assert_same_to_rounding(workdir, unbroken)


@pytest.mark.parametrize(
    ("fault", "at", "number"),
    [
        pytest.param("batch", 5, 0, marks=pytest.mark.slow),
        pytest.param("evaluation", 6, 1, marks=pytest.mark.slow),
        pytest.param("batch", 5, 1, marks=pytest.mark.release),
        pytest.param("slow save", 6, 0, marks=pytest.mark.release),
        pytest.param("replace results.json", 0, 0, marks=pytest.mark.release),
    ],
)
def test_of_two_processes_one_is_lost_and_the_other_reports_it(phantom, unbroken, unused_port, fault, at, number):
    workdir = unbroken.with_name(f"lost-{fault}-{number}")
    pair = Pair(unbroken, fields(phantom), workdir)
    flags = (f"--coordinator=localhost:{unused_port}", "--processes=2", "--heartbeat=10")
    both = [pair.start(*flags, f"--process={i}", dies=(fault, at) if i == number else ()) for i in (0, 1)]
    said = [process.communicate(timeout=1200)[1] for process in both]
    assert both[number].returncode == 128 + signal.SIGKILL, said
    assert both[1 - number].returncode == 134, said
    *before, last = said[1 - number].splitlines()
    assert re.fullmatch(
        r"error: (Killed by SIGABRT \(JAX aborts .* is lost .*\)|Another process of the run was lost \(.*\))"
        r"\. Rerun the same command .*to resume from the last checkpoint\.",
        last,
    )
    forbidden = r"^error:|Traceback|Check failure|Fatal|coordination"
    assert not any(re.search(forbidden, line) for line in before), "\n".join(before)
    alone = pair.start("--processes=1")
    _, errors = alone.communicate(timeout=1200)
    assert alone.returncode == 0, errors
    assert_same_to_rounding(workdir, unbroken)
