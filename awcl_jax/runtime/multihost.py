"""Several processes of one run, mostly one per host: how they connect, and how they stop together.

The only module that starts `jax.distributed`.
"""

import contextlib
import errno
import json
import os
import re
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from awcl_jax.runtime import child_process
from awcl_jax.runtime.errors import InputError, first_line
from awcl_jax.runtime.source_digest import source_digest

_PATIENCE = 290  # seconds until a process that waits for the others gives up; after 300 JAX would abort it
_HEARTBEAT = 100  # seconds, as in JAX
_LONGEST_HEARTBEAT = 24 * 3600  # seconds; JAX takes no more than 68 years, and nobody waits so long for a lost process
_MOST_PROCESSES = 100_000
_NAMED = 3  # differences between processes that a message names
_HOST = re.compile(r"[^\s:/@\[\]]+|\[[\w:.%]+\]")  # a name, an address, or one of IPv6 in brackets
# In errors of JAX: the library that carries data between processes, or what its coordinator answers about a lost one.
_ERRORS_OF_XLA = (jax.errors.JaxRuntimeError, ValueError)  # the second of a program that was not started ahead
_LOSS = re.compile(
    "^(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)|Gloo|NCCL|coordination|heartbeat|by peer|Broken pipe",
    re.IGNORECASE | re.MULTILINE,
)


def join(
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    heartbeat: int = _HEARTBEAT,
) -> None:
    """Connect this process to the others of the run, before any other call of JAX; wait for them.

    Without arguments JAX asks the launcher that started the process: Slurm (`srun`), Open MPI, a Cloud TPU VM or slice,
    or Kubernetes (if the package `kubernetes` is installed). Without a launcher, or with `processes=1` alone, nothing
    happens. As always with JAX, a process that Slurm started sees only the GPU of its number on the node, unless
    `JAX_LOCAL_DEVICE_IDS` is set.

    Args:
      coordinator: HOST:PORT on which process 0 listens, reachable from all others.
      processes: number of all processes.
      process: number of this one, from 0.
      heartbeat: seconds without a response after which JAX considers a process lost and aborts all others.

    Raises:
      InputError: the arguments are incomplete or invalid, or the others cannot be reached.
    """
    if not 1 <= heartbeat <= _LONGEST_HEARTBEAT:
        raise InputError(f"--heartbeat must be from 1 to {_LONGEST_HEARTBEAT:,} seconds (a day); got {heartbeat}.")
    if processes is not None and not 1 <= processes <= _MOST_PROCESSES:
        raise InputError(f"--processes must be from 1 to {_MOST_PROCESSES:,}; got {processes}.")
    if (coordinator, process) == (None, None) and processes in (None, 1):
        if processes is None:
            _join_by_launcher(heartbeat)
        if jax.distributed.is_initialized():
            child_process.leave_page_to_parent()
        return
    if coordinator is None or processes is None or process is None:
        raise InputError(
            "Pass --coordinator=HOST:PORT, --processes=N and --process=I together, none of them if a launcher starts "
            "the processes, or --processes=1 alone for a single process."
        )
    host, _, port = coordinator.rpartition(":")
    if not (_HOST.fullmatch(host) and port.isascii() and port.isdecimal()):
        raise InputError(f"--coordinator must be HOST:PORT, where process 0 listens; got {coordinator!r}.")
    if len(port) > 5 or not 1 <= int(port) <= 65535:
        raise InputError(f"The port of --coordinator must be from 1 to 65535; got {port[:20]}.")
    if not 0 <= process < processes:
        raise InputError(f"--process must be at least 0 and below --processes={processes}; got {process}.")
    if process == 0:
        _require_free_port(coordinator, int(port))
    with _failure_in_words(f"at {coordinator}"):
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            # Do not ask a launcher: under Slurm it would restrict the devices that this process sees.
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=heartbeat,
        )
    child_process.leave_page_to_parent()


@contextlib.contextmanager
def loss_in_words() -> Iterator[None]:
    """Exit with status `child_process.LOST` and one line if another process of the run is lost in this block.

    Which of the two notices first is chance: an operation with that process, which then raises, or JAX's heartbeats,
    which abort this process; `child_process` reports that with the same status. Files of the run are closed when the
    block is left, so this is for the outermost block of a program.
    """
    try:
        yield
    except Exception as error:
        loss = next((one for one in _chain(error) if _is_loss(one)), None)
        if loss is None or not jax.distributed.is_initialized():
            raise
        print(
            f"error: Another process of the run was lost ({first_line(loss)[:200]}). Rerun the same command on all "
            "hosts to resume from the last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        # Without JAX's own end, which waits for the lost process and then aborts this one.
        os._exit(child_process.LOST)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it: libraries raise their own from JAX's."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _is_loss(error: BaseException) -> bool:
    from_xla = isinstance(error, _ERRORS_OF_XLA) and not isinstance(error, InputError)
    return from_xla and _LOSS.search(str(error)) is not None


def first() -> bool:
    """Return whether this is the process that prints and writes for all."""
    return jax.process_index() == 0


def agreed(value: int) -> int:
    """Return the first process's `value`; each process calls it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def require_same(values: Mapping[str, Any]) -> None:
    """Check that all processes have the same values and the same version of the code; each process calls it.

    With different configurations or versions, processes would wait for each other or compute numbers that belong to
    neither.

    Args:
      values: JSON values.

    Raises:
      InputError: they differ; every process names what differs.
    """
    if jax.process_count() == 1:
        return
    values = {**values, "awcl_jax": source_digest()[:8], "jax": jax.__version__}
    own = np.frombuffer(json.dumps(values, sort_keys=True).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([own.size])).reshape(-1)
    padded = np.pad(own, (0, int(sizes.max()) - own.size))
    texts = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    first, *others = (json.loads(text[:size].tobytes()) for text, size in zip(texts, sizes.tolist(), strict=True))
    for process, other in enumerate(others, start=1):
        differing = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        if differing:
            named = ", ".join(f"{name} {other.get(name)!r} and not {first.get(name)!r}" for name in differing[:_NAMED])
            more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
            raise InputError(
                f"Process {process} differs from process 0 ({named}{more}). Start all with the same command and "
                "the same version of the code."
            )


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Stop all processes in this block if bad input stops one of them.

    Otherwise they would wait for it at their next collective operation.

    Raises:
      InputError: another process stopped, and reports why itself.
    """
    problem: Exception | None = None
    try:
        yield
    except (InputError, OSError) as error:
        problem = error
    stopped = [problem is not None]
    if jax.process_count() > 1:
        try:
            stopped = multihost_utils.process_allgather(np.array(stopped)).reshape(-1).tolist()
        except _ERRORS_OF_XLA:
            if problem is not None:
                raise problem from None  # another one is lost, too
            raise
    if problem is not None:
        raise problem
    if any(stopped):
        raise InputError(f"Process {stopped.index(True)} of {len(stopped)} failed. See its error.")


def _require_free_port(coordinator: str, port: int) -> None:
    """Check that this process can listen where the others look for it; JAX would crash if it cannot.

    JAX listens on all addresses of this host.

    Raises:
      InputError: it cannot.
    """
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            listening = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue  # the kernel lacks this protocol
        with listening:
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # A port whose last connections are still closing is free.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind((address, port))
                listening.listen()
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    continue  # the protocol is switched off
                raise InputError(
                    f"Process 0 cannot listen on port {port} of --coordinator={coordinator} ({error.strerror}). Choose "
                    "a free port above 1023, the same for all processes."
                ) from error


def _join_by_launcher(heartbeat: int) -> None:
    if os.environ.get("SLURM_NTASKS") == "1" and "SLURM_STEP_NODELIST" in os.environ:
        return  # alone in its step: JAX would leave it one GPU
    with warnings.catch_warnings(), _failure_in_words():
        # In any pod, even a single one, JAX warns that `kubernetes` is not installed.
        warnings.filterwarnings("ignore", message="Kubernetes environment detected")
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)
        except ValueError as error:
            if "coordinator_address should be defined" not in str(error):
                raise


@contextlib.contextmanager
def _failure_in_words(where: str = "through their launcher") -> Iterator[None]:
    """Turn any failure of a launcher, its server or the network, or a missing answer, into one line with the fix."""

    def problem(cause: str) -> str:
        return (
            f"The processes of the run cannot connect {where} ({cause}). Start each with --coordinator=HOST:PORT "
            "--processes=N --process=I, where all can reach that port, or with --processes=1 for a single process."
        )

    def give_up() -> None:
        print(f"error: {problem(f'no answer within {_PATIENCE} s')}", file=sys.stderr, flush=True)
        # The waiting thread is in C++ and would abort the process with a page of its stack.
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
