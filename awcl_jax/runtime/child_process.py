"""Explain the death of a process that cannot explain it itself: out of memory, or aborted by a library.

When another process of the run is lost, JAX aborts this one from C++ with a page of its stack; no code of that process
can explain it. So the work runs in a child process, and the process that was started waits for it.
"""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType

_MEANINGS: dict[int, str] = {
    signal.SIGABRT: " (JAX aborts a process when another process of the run is lost or stops responding)",
    signal.SIGKILL: " (probably out of memory)",
}

_PASSED_ON = (signal.SIGTERM, signal.SIGINT)


def continue_in_child() -> None:
    """Continue in a child process; this one passes SIGTERM on, waits, and exits as the child does.

    If a signal ended the child, one line reports it, and the exit status is 128 plus the signal's number, as in a
    shell. A child whose parent dies exits at once.

    Call it before anything starts a thread, JAX included. Where processes cannot fork it does nothing.
    """
    if not hasattr(os, "fork"):
        return
    lifeline, held = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal that arrives before this process can pass it on is held until it can.
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child == 0:
        os.close(held)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        threading.Thread(target=_leave_with_parent, args=(lifeline,), daemon=True).start()
        return
    os.close(lifeline)

    def pass_on(number: int, frame: FrameType | None) -> None:
        # A scheduler may send it again when the child has just exited.
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the child's status is the one to exit with
    if status < 0:
        cause = signal.Signals(-status).name + _MEANINGS.get(-status, "")
        print(
            f"error: Killed by {cause}. Rerun the same command to resume from the last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        status = 128 - status
    os._exit(status)


def _leave_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # ends when no process holds the other end any more
    os._exit(1)
