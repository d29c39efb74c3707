"""Explain the death of a process that cannot explain it itself: out of memory, or aborted by a library.

When another process of the run is lost, JAX aborts this one from C++ with a page of its stack; no code of that process
can explain it. So the work runs in a child process, and the process that was started waits for it.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

LOST = 128 + signal.SIGABRT
"""Exit status of a process because another one of the run is lost, whichever of the two notices."""

_MEANINGS: dict[int, str] = {
    signal.SIGABRT: " (JAX aborts a process when another process of the run is lost or stops responding)",
    signal.SIGKILL: " (probably out of memory)",
}

_PASSED_ON = (signal.SIGTERM, signal.SIGINT)

# How the page begins that JAX prints before it aborts a process because another one is lost, or when that process exits
# itself; Python's fault handler adds to it. The pages of other aborts are printed.
_PAGE = re.compile(
    rb"[EF]\d{4,8} [\d:.]{8,} .*(coordination_service|distributed service)"
    rb"|[WE]\d{4,8} [\d:.]{8,} .*preemption_sync_manager.*Failed to"
)
_PATIENCE = 1  # second to wait for the end of what the child printed, which its own children may keep open

_to_parent: int | None = None
"""In the child: where `leave_page_to_parent` sends stderr."""


def continue_in_child() -> None:
    """Continue in a child process; this one passes SIGTERM on, waits, and exits as the child does.

    If a signal ended the child, one line reports it, and the exit status is 128 plus the signal's number, as in a
    shell. A child whose parent dies exits at once.

    Call it before anything starts a thread, JAX included. Where processes cannot fork it does nothing.
    """
    global _to_parent
    if not hasattr(os, "fork"):
        return
    lifeline, held = os.pipe()
    printed, to_parent = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal that arrives before this process can pass it on is held until it can.
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child == 0:
        os.close(held)
        os.close(printed)
        _to_parent = to_parent
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        threading.Thread(target=_leave_with_parent, args=(lifeline,), daemon=True).start()
        return
    os.close(lifeline)
    os.close(to_parent)
    page = bytearray()
    reader = threading.Thread(target=_print_all_but_page, args=(printed, page), daemon=True)
    reader.start()

    def pass_on(number: int, frame: FrameType | None) -> None:
        # A scheduler may send it again when the child has just exited.
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the child's status is the one to exit with
    reader.join(_PATIENCE)
    if status == LOST:  # the child may have reported the loss after the page began
        _print(b"".join(line for line in page.splitlines(keepends=True) if line.startswith(b"error: ")))
    elif status != -signal.SIGABRT:
        _print(page)
    if status < 0:
        cause = signal.Signals(-status).name + _MEANINGS.get(-status, "")
        print(
            f"error: Killed by {cause}. Rerun the same command to resume from the last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        status = 128 - status
    os._exit(status)


def leave_page_to_parent() -> None:
    """In the child, print on stderr through the parent from now on, which omits the page of an abort by JAX.

    Does nothing in a process that `continue_in_child` has not made.
    """
    if _to_parent is not None:
        sys.stderr.flush()
        os.dup2(_to_parent, 2)


def _print_all_but_page(printed: int, page: bytearray) -> None:
    """Print what comes out of a pipe, up to the page; that, and all after it, is added to `page`."""
    last = b""
    while piece := os.read(printed, 2**16):
        if page:
            page += piece
            continue
        begins = _PAGE.search(piece)
        until = begins.start() if begins else len(piece)
        _print(piece[:until])
        last = piece[:until] or last
        page += piece[until:]
        if page and last and not last.endswith(b"\n"):
            _print(b"\n")  # the error that follows begins a line, after a progress bar too


def _print(text: bytes | bytearray) -> None:
    with contextlib.suppress(OSError):  # nobody reads it, or the disk is full
        while text:
            text = text[os.write(2, text) :]


def run_to_end(module: str, request: dict[str, Any]) -> bool:
    """Run `python -m MODULE` in a new process with a request, which it reads with `read_request`.

    It gets no signal of a terminal, ends at once when this process does, and prints nothing.

    Returns:
      Whether it succeeded.
    """
    with subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as child:
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended before it read
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()  # not closed: it ends with the other end of its input
        return child.wait() == 0


def read_request() -> dict[str, Any]:
    """Return the request of `run_to_end`; from then on this process exits when the one that asked does."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 2**16)
        if not part:
            sys.exit(1)
        line += part
    threading.Thread(target=_leave_with_parent, args=(0,), daemon=True).start()
    return json.loads(line)


def _leave_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # ends when no process holds the other end any more
    os._exit(1)
