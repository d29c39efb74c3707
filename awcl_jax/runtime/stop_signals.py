"""Stop a run after a step: on SIGTERM, as sent before a machine is taken away, or on ctrl-C.

Schedulers send SIGTERM more than once, and to every process of a group. The first stops the run; while the run saves
and leaves, all later ones are ignored.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from awcl_jax.runtime.errors import RunStopped


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[int], bool]]:
    """Record SIGTERM and the first ctrl-C in this block instead of stopping; a second ctrl-C interrupts as usual.

    Yields a function that every process of a run calls after every step, with the number of steps taken. It returns
    whether to stop there, the same on all processes: whichever of them gets the signal, all stop after the same step.

    Leave the block only when everything is saved. After a SIGTERM in it, this process is about to be ended: SIGTERM
    stays ignored, so that another one cannot cut short what the process still has to close or upload.

    Only the main thread of a program can handle signals. In another thread it always returns False.

    Raises:
      RunStopped: the block ended without one though a signal asked it to stop after the last step.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda done: False
        return
    # With several processes JAX handles SIGTERM itself, and chooses a step that none of them has passed.
    together = jax.distributed.is_initialized()
    asked = threading.Event()
    terminated = threading.Event()

    def notice(number: int, frame: FrameType | None) -> None:
        asked.set()
        if number == signal.SIGTERM:
            terminated.set()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print("\nSaving and stopping after this step; ctrl-C again exits at once.", file=sys.stderr, flush=True)
            if together:
                os.kill(os.getpid(), signal.SIGTERM)

    handled = [signal.SIGINT] if together else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, notice) for number in handled}
    try:
        yield multihost_utils.reached_preemption_sync_point if together else lambda done: asked.is_set()
        if asked.is_set() and not together:
            raise RunStopped("stopped after the last step (saved); rerun the same command to get the results")
    finally:
        for number, handler in before.items():
            ignored = number == signal.SIGTERM and terminated.is_set()
            signal.signal(number, signal.SIG_IGN if ignored else handler)


def ignore_sigterm() -> None:
    """Ignore SIGTERM from now on, in a process that has saved and leaves; Python's own end then ignores it, too."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
