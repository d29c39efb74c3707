"""What is left to say when a process dies without a word: killed for its memory, or aborted by a library.

JAX aborts a process, from C++ and with a page of its stack, where another process of the run is lost; no code of that
process can say what this means. So the work is done in a child process, and the one that was started stays behind.
"""

import os
import signal
import sys
import threading
from types import FrameType

_MEANINGS: dict[int, str] = {
    signal.SIGABRT: ", as JAX does where another process of the run is lost or gives no sign of life",
    signal.SIGKILL: ", most likely for want of memory",
}

_PASSED_ON = (signal.SIGTERM, signal.SIGINT)


def continue_in_child() -> None:
    """Go on in a child process; this one passes SIGTERM on, waits, and leaves as the child does.

    Where a signal ended the child, one line says so, and the exit status is the signal's number and 128, as of a shell.
    A child whose parent dies leaves at once.

    To be called before anything starts a thread, JAX among them. Where processes cannot fork nothing happens.
    """
    if not hasattr(os, "fork"):
        return
    lifeline, held = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal that comes before this process can pass it on waits until it can.
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child == 0:
        os.close(held)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        threading.Thread(target=_leave_with_parent, args=(lifeline,), daemon=True).start()
        return
    os.close(lifeline)

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        by = signal.Signals(-status).name + _MEANINGS.get(-status, "")
        print(
            f"error: The run was ended by {by}: the same command goes on from the last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        status = 128 - status
    os._exit(status)


def _leave_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # ends when no process holds the other end any more
    os._exit(1)
