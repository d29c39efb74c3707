"""Several processes of one run, mostly one on every host: how they find each other, and how they stop as one.

The only module that starts `jax.distributed`.
"""

import contextlib
import hashlib
import json
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from awcl_jax.runtime.errors import InputError, first_line

_PATIENCE = 290  # seconds until a process that waits for the others gives up; after 300 JAX would abort it
_HEARTBEAT = 100  # seconds, as in JAX
_TOLD = 3  # differences between processes that a message names


def join(
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    heartbeat: int = _HEARTBEAT,
) -> None:
    """Make this process one of the run's, before any other call of JAX; waits for the others.

    Without arguments JAX asks the engine that started the process: Slurm (`srun`), Open MPI, a Cloud TPU VM or slice,
    or Kubernetes (where the package `kubernetes` is installed). Where there is none, or with `processes=1` alone,
    nothing is done. As always with JAX, a process that Slurm started sees the GPU of its number on the node only,
    unless `JAX_LOCAL_DEVICE_IDS` says otherwise.

    Args:
      coordinator: HOST:PORT on which process 0 listens and all others find it.
      processes: number of all processes.
      process: number of this one, from 0.
      heartbeat: seconds without a sign of life after which JAX takes a process for lost and aborts all others.

    Raises:
      InputError: the arguments are incomplete or do not fit, or the others cannot be reached.
    """
    if heartbeat < 1:
        raise InputError(f"--heartbeat is at least 1 second; got {heartbeat}.")
    if (coordinator, process) == (None, None) and processes in (None, 1):
        if processes is None:
            _join_by_engine(heartbeat)
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
    with _failure_in_words(f"at {coordinator}"):
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            # Without asking an engine: under Slurm it would narrow the devices that this process sees.
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=heartbeat,
        )


def first() -> bool:
    """Whether this is the process that prints and writes for all."""
    return jax.process_index() == 0


def agreed(value: int) -> int:
    """What the first process gives for `value`; each process calls it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def require_same(values: Mapping[str, Any]) -> None:
    """Make sure that all processes have these same values, and one version of the code; each process calls it.

    With another configuration or another version of the code processes would wait for each other, or go on with
    numbers that belong to neither.

    Args:
      values: as JSON can hold them.

    Raises:
      InputError: they differ; on each process, with what differs.
    """
    if jax.process_count() == 1:
        return
    values = {**values, "awcl_jax": _code(), "jax": jax.__version__}
    own = np.frombuffer(json.dumps(values, sort_keys=True).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([own.size])).reshape(-1)
    padded = np.pad(own, (0, int(sizes.max()) - own.size))
    texts = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    first, *others = (json.loads(text[:size].tobytes()) for text, size in zip(texts, sizes.tolist(), strict=True))
    for process, other in enumerate(others, start=1):
        differing = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        if differing:
            told = ", ".join(f"{name} {other.get(name)!r} and not {first.get(name)!r}" for name in differing[:_TOLD])
            more = f" and {len(differing) - _TOLD} more" if len(differing) > _TOLD else ""
            raise InputError(
                f"Process {process} differs from process 0 ({told}{more}): start all with one command, from one "
                "version of the code."
            )


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
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


def _join_by_engine(heartbeat: int) -> None:
    if os.environ.get("SLURM_NTASKS") == "1" and "SLURM_STEP_NODELIST" in os.environ:
        return  # alone in its step: JAX would leave it one GPU
    with warnings.catch_warnings(), _failure_in_words():
        # In any pod, be it one that nobody starts several of: that `kubernetes` is not installed.
        warnings.filterwarnings("ignore", message="Kubernetes environment detected")
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)
        except ValueError as error:
            if "coordinator_address should be defined" not in str(error):
                raise


def _code() -> str:
    """What tells two versions of this package apart, released or not."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


@contextlib.contextmanager
def _failure_in_words(where: str = "by their engine") -> Iterator[None]:
    """One line with a remedy for whatever an engine, its server or the network makes of a failure, or for silence."""

    def problem(said: str) -> str:
        return (
            f"The processes of the run did not find each other {where} ({said}): start each with "
            "--coordinator=HOST:PORT --processes=N --process=I, where all can reach that port, or with --processes=1 "
            "to run without others."
        )

    def give_up() -> None:
        print(f"error: {problem(f'nobody came within {_PATIENCE} s')}", file=sys.stderr, flush=True)
        # The thread that waits is in C++, which would abort the process with a page of its stack.
        os._exit(1)

    watch = threading.Timer(_PATIENCE, give_up)
    watch.daemon = True
    watch.start()
    try:
        yield
    except Exception as error:
        raise InputError(problem(first_line(error))) from error
    finally:
        watch.cancel()
