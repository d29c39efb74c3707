"""Stop a run after a step: on SIGTERM, as sent before a machine is taken away, or on ctrl-C."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[int], bool]]:
    """Record SIGTERM and the first ctrl-C in this block instead of stopping; a second ctrl-C interrupts as usual.

    Yields a function that every process of a run calls after every step, with the number of steps taken. It returns
    whether to stop there, the same on all processes: whichever of them gets the signal, all stop after the same step.

    Only the main thread of a program can handle signals. In another thread it always returns False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda done: False
        return
    # With several processes JAX handles SIGTERM itself, and chooses a step that none of them has passed.
    together = jax.distributed.is_initialized()
    asked = threading.Event()

    def notice(number: int, frame: FrameType | None) -> None:
        asked.set()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print("\nSaving and stopping after this step; ctrl-C again exits at once.", file=sys.stderr, flush=True)
            if together:
                os.kill(os.getpid(), signal.SIGTERM)

    handled = [signal.SIGINT] if together else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, notice) for number in handled}
    try:
        yield multihost_utils.reached_preemption_sync_point if together else lambda done: asked.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
