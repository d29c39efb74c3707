"""Runs that are stopped in every way that runs are stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import orbax.checkpoint as ocp
import pytest

from awcl_jax.metrics import read_metrics

ROOT = Path(__file__).parents[1]
TIMING = {"frames_per_second", "data_wait_share"}
STEPS = 24
# In the order of the run, which has a checkpoint every other step: most starts get further than the one before.
FAULTS = [
    *(["replace config.json", 0], ["batch", 1], ["written", 2], ["before save", 2], ["save", 2], ["torn line", 4]),
    *(["saved", 4], ["replace metrics.jsonl", 0], ["slow save", 6], ["evaluation", 6], ["clock", 0.05], ["clock", 0.5]),
    *(["saved", 12], ["evaluation", 12], ["written", 14], ["torn line", 18], ["slow save", 20], ["evaluation", 24]),
    *(["saved", 24], ["replace results.json", 0]),
]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu"} | more


def start(workdir: Path, config: dict, faults: list) -> tuple[list[int], str]:
    """The exit statuses of the starts of one run, one for each fault, and what they said."""
    order = {"config": config, "workdir": str(workdir), "compiled": str(workdir.parent / "compiled"), "faults": faults}
    file = workdir.with_suffix(".json")
    file.write_text(json.dumps(order))
    command = [sys.executable, "-m", "tests.killed_runs", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def final_state(workdir: Path, step: int):
    """All arrays of a checkpoint, as Orbax alone reads them."""
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        return jax.device_get(manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"])


def numbers(workdir: Path):
    """All metrics but the clock's."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


def results(workdir: Path):
    return json.loads((workdir / "results.json").read_text()) | {"peak_memory_mb": None}


def fields(phantom: Path, **changed) -> dict:
    tiny = {"train.steps": STEPS, "train.eval_every": 6, "train.log_every": 2, "train.checkpoint_every": 2}
    tiny |= {"optim.warmup_steps": 0, "model.width_factor": 0.0625, "report.pictures": False}
    return tiny | {"data.path": str(phantom)} | changed


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_bit_for_bit_like_one_that_was_not(phantom, tmp_path):
    assert len(FAULTS) >= 20

    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    assert start(unbroken, fields(phantom), [None])[0] == [0]
    assert start(killed, fields(phantom), [*FAULTS, None])[0] == [-9] * len(FAULTS) + [0]
    chex.assert_trees_all_equal(final_state(killed, STEPS), final_state(unbroken, STEPS))
    assert numbers(killed) == numbers(unbroken)
    assert results(killed) == results(unbroken)
    left = {file.name for file in killed.iterdir() if file.suffix != ".part"}
    assert left == {file.name for file in unbroken.iterdir()}
