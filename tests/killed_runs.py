"""Runs that are killed: `python -m tests.killed_runs RUN.json`, a program for tests.

RUN.json is {"config": fields over the tiny variant of configs/fine.py, "workdir": DIR, "compiled": DIR, "faults": []}.
For each fault the same run is started in a process of its own that kills itself there with SIGKILL, and goes on at the
next. A fault is [name, step]: the first time that the named thing happens at that step or later; or ["clock", seconds]
after the first batch. ["SIGTERM", step] and ["SIGINT", step] ask the run to stop while it takes that step, and ["SIGINT
twice", step] insists. `null` is a start without a fault. Prints the exit status of each start as a line of JSON.

The starts are forked from this process, which has imported everything but started nothing of JAX, so that each costs
what the run does.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from unittest import mock

import jax
import orbax.checkpoint as ocp

from awcl_jax import metrics, pretrain
from awcl_jax.checkpoint import Checkpoints
from awcl_jax.cli import exit_on_bad_input
from awcl_jax.data import pipeline
from awcl_jax.evaluation import Evaluation
from configs import fine


def die(*args, **kwargs) -> None:
    """Leave no time for anything."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def dying(name: str, at: float):
    """Within this block the process dies at the fault."""
    save, write, validate = Checkpoints.save, metrics.MetricsWriter.write, Evaluation.validate
    batches, replace = pipeline.batches, Path.replace
    finished = ocp.CheckpointManager.wait_until_finished
    now = {"step": 0}

    def counted(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            if now["step"] == 0 and name == "clock":
                threading.Timer(at, die).start()
            now["step"] = batch.step + 1
            if name == "batch" and batch.step >= at:
                die()
            if name.startswith("SIG") and batch.step + 1 == at:
                for _ in range(2 if "twice" in name else 1):
                    signal.raise_signal(signal.Signals[name.split()[0]])
            yield batch

    def saving(self, step, *args, **kwargs):
        if name == "before save" and step >= at:
            die()
        save(self, step, *args, **kwargs)
        if step >= at and name == "save":
            die()
        if step >= at and name == "slow save":
            threading.Timer(0.03, die).start()
        if step >= at and name == "saved":
            finished(self._manager)
            die()

    def writing(self, step, values):
        if name == "torn line" and step >= at:
            self._lines.write('{"step": 1, "lo')
            self._lines.flush()
            die()
        write(self, step, values)
        if name == "written" and step >= at:
            die()

    def evaluating(self, variables):
        if name == "evaluation" and now["step"] >= at:
            threading.Timer(0.01, die).start()
        return validate(self, variables)

    def replacing(self, target):
        if name == f"replace {Path(target).name}":
            die()
        return replace(self, target)

    with (
        mock.patch.object(pipeline, "batches", counted),
        mock.patch.object(Checkpoints, "save", saving),
        mock.patch.object(metrics.MetricsWriter, "write", writing),
        mock.patch.object(Evaluation, "validate", evaluating),
        mock.patch.object(Path, "replace", replacing),
    ):
        yield


def start(order: dict, fault: list | None) -> int:
    """Start the run in a process of its own, and give the status that it ends with."""
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
            pretrain.run(config, Path(order["workdir"]))
        status = 0
    except SystemExit as left:
        status = left.code
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    order = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps([start(order, fault) for fault in order["faults"]]))
