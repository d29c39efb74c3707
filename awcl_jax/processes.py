"""Several processes of one run, mostly one on every host: how they find each other, and how they stop as one.

The only module that starts `jax.distributed`.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from awcl_jax.errors import InputError


def join(*, coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Make this process one of the run's, before any other call of JAX; waits for the others.

    Without arguments JAX asks the engine that started the process: Slurm (`srun`), Open MPI, a Cloud TPU VM or slice,
    or Kubernetes (where the package `kubernetes` is installed). Where there is none, or with `processes=1` alone,
    nothing is done. As always with JAX, a process that Slurm started sees the GPU of its number on the node only,
    unless `JAX_LOCAL_DEVICE_IDS` says otherwise.

    Args:
      coordinator: HOST:PORT on which process 0 listens and all others find it.
      processes: number of all processes.
      process: number of this one, from 0.

    Raises:
      InputError: the arguments are incomplete or do not fit, or the others cannot be reached.
    """
    if (coordinator, process) == (None, None) and processes in (None, 1):
        if processes is None:
            _join_by_engine()
        return
    if coordinator is None or processes is None or process is None:
        raise InputError(
            "Of --coordinator=HOST:PORT, --processes=N and --process=I give all three, or none where an engine starts "
            "the processes, or --processes=1 alone to run without others."
        )
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal()):
        raise InputError(f"--coordinator is HOST:PORT, where process 0 listens; got {coordinator!r}.")
    if not 0 <= process < processes:
        raise InputError(f"--process counts from 0 to below --processes={processes}; got {process}.")
    with _failure_in_words():
        # Without asking an engine: under Slurm it would narrow the devices that this process sees.
        jax.distributed.initialize(coordinator, processes, process, cluster_detection_method="deactivate")


def first() -> bool:
    """Whether this is the process that prints and writes for all."""
    return jax.process_index() == 0


def agreed(value: int) -> int:
    """What the first process gives for `value`; each process calls it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Leave this block all or none: where bad input stops one process, it stops the others, too.

    They would wait for it otherwise, at the next thing that all do together.

    Raises:
      InputError: another process stopped, and says why itself.
    """
    problem: Exception | None = None
    try:
        yield
    except (InputError, OSError) as error:
        problem = error
    stopped = [problem is not None]
    if jax.process_count() > 1:
        stopped = multihost_utils.process_allgather(np.array(stopped)).reshape(-1).tolist()
    if problem is not None:
        raise problem
    if any(stopped):
        raise InputError(f"Process {stopped.index(True)} of {len(stopped)} cannot go on: see what it says.")


def _join_by_engine() -> None:
    if os.environ.get("SLURM_NTASKS") == "1" and "SLURM_STEP_NODELIST" in os.environ:
        return  # alone in its step: JAX would leave it one GPU
    with warnings.catch_warnings(), _failure_in_words():
        # In any pod, be it one that nobody starts several of: that `kubernetes` is not installed.
        warnings.filterwarnings("ignore", message="Kubernetes environment detected")
        try:
            jax.distributed.initialize()
        except ValueError as error:
            if "coordinator_address should be defined" not in str(error):
                raise


@contextlib.contextmanager
def _failure_in_words() -> Iterator[None]:
    """One line with a remedy for whatever an engine, its server or the network makes of a failure."""
    try:
        yield
    except Exception as error:
        said = str(error).strip() or type(error).__name__
        raise InputError(
            f"The processes of the run did not find each other ({said.splitlines()[0]}): start each with "
            "--coordinator=HOST:PORT --processes=N --process=I, or with --processes=1 to run without others."
        ) from error
