"""Runs that are killed: what the tests and `benchmarks.faults` break runs with.

`python -m tests.helpers.killed_runs RUN.json ...` is the program behind `starts`. RUN.json is {"config": fields over
the tiny variant of configs/fine.py, "workdir": DIR, "compiled": DIR, "faults": []}. For each fault the same run is
started in a process of its own that kills itself there with SIGKILL, and resumes at the next. A fault is one of:

    [name, step]           the first time that the named thing happens at that step or later
    ["clock", seconds]     so long after the first batch
    ["SIGTERM", step]      asks the run to stop while it takes that step, as does ["SIGINT", step]
    ["SIGINT twice", step] insists
    ["SIGTERM stream", step] asks again every few milliseconds until the process is gone
    ["sending", step]      in the middle of sending a checkpoint to a bucket
    ["slow disk", seconds] ends nothing: every line of metrics, every checkpoint and every file that is renamed takes
                           so much longer
    null                   a start without a fault

Prints the exit statuses of each run's starts as a line of JSON. The starts are forked from this process, which has
imported everything but started nothing of JAX, so that each costs what the run does.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from awcl_jax.data import pipeline
from awcl_jax.evaluate.frozen import Evaluation
from awcl_jax.pretrain import runner as pretrain
from awcl_jax.runtime import bucket
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.train import metrics
from awcl_jax.train.checkpoint import Checkpoints
from awcl_jax.train.metrics import METRICS_FILE, read_metrics
from configs import fine

STEPS = 24
_ROOT = Path(__file__).parents[2]
_TIMING = {"frames_per_second", "data_wait_share"}


def fields(phantom: Path, **changed: object) -> dict[str, object]:
    """Return the configuration of a run of a few seconds on the tiny phantom, with a checkpoint every other step.

    With ten times this learning rate, and without a warm-up, Adam amplifies the rounding of a topology to a percent of
    the loss.
    """
    tiny: dict[str, object] = {"train.steps": STEPS, "train.eval_every": 6, "train.log_every": 2}
    tiny |= {"train.checkpoint_every": 2, "optim.warmup_steps": 0, "model.width_factor": 0.0625}
    tiny |= {"optim.learning_rate": 1e-4}
    return tiny | {"report.pictures": False, "data.path": str(phantom)} | changed


def starts(
    workdir: Path, config: dict[str, object], faults: list, *, python: str = sys.executable
) -> tuple[list[int], str]:
    """Return the exit statuses of the starts of one run, one for each fault, and their output.

    Args:
      workdir: of the run.
      config: its configuration.
      faults: of its starts.
      python: interpreter to start it with.
    """
    order = {"config": config, "workdir": str(workdir), "compiled": str(workdir.parent / "compiled"), "faults": faults}
    file = workdir.with_name(f"{workdir.name}.order.json")
    file.write_text(json.dumps(order))
    command = [python, "-m", "tests.helpers.killed_runs", str(file)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=3600, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def final_state(workdir: Path, step: int = STEPS) -> PyTree:
    """Return all arrays of a run's checkpoint, as Orbax alone reads them."""
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        return jax.device_get(manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"])


def numbers(workdir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics, without what depends on the clock."""
    lines = read_metrics(workdir / METRICS_FILE)
    return [{name: value for name, value in line.items() if name not in _TIMING} for line in lines]


def assert_same_to_rounding(workdir: Path, expected: Path) -> None:
    """Check the losses and the final parameters of a run against those of another."""
    losses, wanted = ([line["loss"] for line in numbers(w) if "loss" in line] for w in (workdir, expected))
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    leaves, known = (jax.tree.leaves(final_state(w)["params"]) for w in (workdir, expected))
    for found, wanted_leaf in zip(leaves, known, strict=True):
        np.testing.assert_allclose(found, wanted_leaf, atol=2e-5)


def die(*args: object, **kwargs: object) -> None:
    """Leave no time for anything."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def dying(name: str, at: float) -> Iterator[None]:
    """Let the process die at the fault within this block."""
    save, write, validate = Checkpoints.save, metrics.MetricsWriter.write, Evaluation.validate
    batches, replace, send = pipeline.batches, Path.replace, bucket.send
    finished = ocp.CheckpointManager.wait_until_finished
    now = {"step": 0}

    def counted(*args: Any, **kwargs: Any) -> Iterator[pipeline.Batch]:
        for batch in batches(*args, **kwargs):
            if now["step"] == 0 and name == "clock":
                threading.Timer(at, die).start()
            now["step"] = batch.step + 1
            if name == "batch" and batch.step >= at:
                die()
            if name.startswith("SIG") and batch.step + 1 == at:
                for _ in range(2 if "twice" in name else 1):
                    signal.raise_signal(signal.Signals[name.split()[0]])
                if "stream" in name:
                    threading.Thread(target=asking, daemon=True).start()
            yield batch

    def asking() -> None:
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.003)

    def saving(self: Checkpoints, step: int, *args: Any, **kwargs: Any) -> None:
        if name == "before save" and step >= at:
            die()
        if name == "slow disk":
            time.sleep(at)
        save(self, step, *args, **kwargs)
        if step >= at and name == "save":
            die()
        if step >= at and name == "slow save":
            threading.Timer(0.03, die).start()
        if step >= at and name == "saved":
            finished(self._manager)
            die()

    def writing(self: metrics.MetricsWriter, step: int, values: Mapping[str, Any]) -> None:
        if name == "torn line" and step >= at:
            self._lines.write('{"step": 1, "lo')
            self._lines.flush()
            die()
        if name == "slow disk":
            time.sleep(at)
        write(self, step, values)
        if name == "written" and step >= at:
            die()

    def evaluating(self: Evaluation, variables: Any) -> dict[str, float]:
        if name == "evaluation" and now["step"] >= at:
            threading.Timer(0.01, die).start()
        return validate(self, variables)

    def replacing(self: Path, target: Path) -> Path:
        if name == f"replace {Path(target).name}":
            die()
        if name == "slow disk":
            time.sleep(at)
        return replace(self, target)

    def sending(folder: Path, names: Sequence[str], url: str) -> None:
        half = name == "sending" and now["step"] >= at and any(n.startswith("checkpoints/") for n in names)
        send(folder, names[: len(names) // 2] if half else names, url)
        if half:
            die()

    with (
        mock.patch.object(pipeline, "batches", counted),
        mock.patch.object(Checkpoints, "save", saving),
        mock.patch.object(metrics.MetricsWriter, "write", writing),
        mock.patch.object(Evaluation, "validate", evaluating),
        mock.patch.object(Path, "replace", replacing),
        mock.patch.object(bucket, "send", sending),
    ):
        yield


def start(order: dict, fault: list | None) -> int:
    """Start the run in a separate process, and return its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        sys.stdout = sys.stderr
        jax.config.update("jax_compilation_cache_dir", order["compiled"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        config = fine.get_config("tiny")
        config.update_from_flattened_dict(order["config"])
        with exit_on_bad_input(), dying(*fault) if fault else contextlib.nullcontext():
            pretrain.run(config, order["workdir"])
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    for order in [json.loads(Path(file).read_text()) for file in sys.argv[1:]]:
        print(json.dumps([start(order, fault) for fault in order["faults"]]))
