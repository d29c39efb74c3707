"""Warn when a run hangs, and in which phase."""

import contextlib
import statistics
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator

_FAR_LONGER = 10  # times the median
_PATIENCE = 60.0  # seconds before any warning, however short the median
_AT_FIRST = 600.0  # seconds for a phase's first time, when a step is compiled
_REMEMBERED = 100  # durations of each phase


class Watch:
    """The phase a run is in, since when, and whether it takes far longer than its median so far.

    Args:
      patience: seconds before any phase is reported.
      at_first: seconds before a phase that has not ended before is reported.
      clock: returns seconds.
    """

    def __init__(
        self,
        *,
        patience: float = _PATIENCE,
        at_first: float = _AT_FIRST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience, self._at_first, self._clock = patience, at_first, clock
        self._durations: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._now: tuple[str, int, float] | None = None
        self._reported_at = 0.0

    def on_phase(self, phase: str, step: int) -> None:
        """Record that the run enters `phase` in step `step`."""
        now = self._clock()
        if self._now is not None:
            before, _, since = self._now
            self._durations[before].append(now - since)
        self._reported_at = 0.0
        self._now = phase, step, now

    def complaint(self) -> str | None:
        """Return a line if the phase takes far too long: once, and again each time it has taken twice as long."""
        if (now := self._now) is None:
            return None
        phase, step, since = now
        lasted = self._clock() - since
        known = self._durations.get(phase)
        median = statistics.median(list(known)) if known else None
        limit = self._at_first if median is None else max(self._patience, _FAR_LONGER * median)
        if lasted < max(limit, 2 * self._reported_at):
            return None
        self._reported_at = lasted
        usual = "first time" if median is None else f"{median:.2g} s is usual"
        return f"step {step} has been {phase} for {lasted:.0f} s ({usual})"


@contextlib.contextmanager
def watching(watch: Watch | None = None, *, every: float = 1.0) -> Iterator[Callable[[str, int], None]]:
    """Check every `every` seconds in a thread and warn on stderr; yield the function to call when a phase begins."""
    watch = watch or Watch()
    over = threading.Event()

    def look() -> None:
        while not over.wait(every):
            if complaint := watch.complaint():
                print(f"\nwarning: {complaint}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=look, name="watchdog", daemon=True)
    thread.start()
    try:
        yield watch.on_phase
    finally:
        over.set()
        thread.join()
