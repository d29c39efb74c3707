"""A run that is asked to stop: by SIGTERM, as from whoever takes its machine away, or by ctrl-C."""

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
    """In this block SIGTERM and the first ctrl-C do no more than to be noticed; a second ctrl-C interrupts as ever.

    Every process of a run calls what it gives after every step, with the number of steps taken. It tells whether to
    stop there, and tells all processes the same: whichever of them is asked, all stop after the same step.

    Only the main thread of a program can notice signals. In another nothing is changed, and the answer is no.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda done: False
        return
    # Of the runs of several processes JAX notices SIGTERM itself, and finds a step that none of them is past.
    together = jax.distributed.is_initialized()
    asked = threading.Event()

    def notice(number: int, frame: FrameType | None) -> None:
        asked.set()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print("\nStopping after this step, to save; ctrl-C again leaves at once.", file=sys.stderr, flush=True)
            if together:
                os.kill(os.getpid(), signal.SIGTERM)

    handled = [signal.SIGINT] if together else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, notice) for number in handled}
    try:
        yield multihost_utils.reached_preemption_sync_point if together else lambda done: asked.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
