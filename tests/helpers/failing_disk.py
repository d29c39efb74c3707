"""A run's files on a disk that fails: `python -m tests.helpers.failing_disk HOW DIR`, a program for tests.

DIR is a small disk of its own. HOW is `full` (known before it is written), `fills` (found out in the middle) or
`readonly`, for a checkpoint, or one of these with `-metrics`, for a line of metrics.
"""

import shutil
import subprocess
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
from absl import logging

from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.train.checkpoint import Checkpoints
from awcl_jax.train.metrics import MetricsWriter


def fail(how: str, disk: Path) -> None:
    if how == "readonly":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        return
    with (disk / "filler").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


@exit_on_bad_input()
def main(how: str, disk: Path) -> None:
    how, _, where = how.partition("-")
    logging.set_verbosity(logging.FATAL)
    state = {"kernel": np.random.default_rng(0).normal(size=(300, 300))}
    room = shutil.disk_usage(disk)._replace(free=10**12)
    with Checkpoints(disk) as checkpoints, MetricsWriter(disk, start_step=0) as metrics:
        metrics.write(1, {"loss": 1.0})
        checkpoints.save(1, state)
    if how == "readonly":
        fail(how, disk)
    with Checkpoints(disk) as checkpoints, ExitStack() as stack:
        if where == "metrics":
            metrics = stack.enter_context(MetricsWriter(disk, start_step=1))
        if how != "readonly":
            fail(how, disk)
        for step in range(2, 2000):
            if where == "metrics":
                metrics.write(step, {"loss": 1.0})
                continue
            with mock.patch("shutil.disk_usage", return_value=room) if how == "fills" else nullcontext():
                checkpoints.save(step, state)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
