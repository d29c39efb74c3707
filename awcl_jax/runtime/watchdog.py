"""Who says that a run hangs, and in what."""

import contextlib
import statistics
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator

_FAR_LONGER = 10  # times the median
_PATIENCE = 60.0  # seconds that nothing is said, however short the median
_AT_FIRST = 600.0  # seconds, for what has not been done yet: a first step is compiled
_REMEMBERED = 100  # durations of each kind


class Watch:
    """What a run is doing, since when, and whether that is far longer than the median of the times before.

    Args:
      patience: in seconds, that nothing is said of anything.
      at_first: in seconds, of what has not been done before.
      clock: gives seconds.
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
        self._told_at = 0.0

    def on_phase(self, phase: str, step: int) -> None:
        """Note that the run enters `phase` in its step `step`."""
        now = self._clock()
        if self._now is not None:
            before, _, since = self._now
            self._durations[before].append(now - since)
        self._told_at = 0.0
        self._now = phase, step, now

    def complaint(self) -> str | None:
        """A line where what is being done takes far too long: once, and again each time that it took twice as long."""
        if (now := self._now) is None:
            return None
        phase, step, since = now
        lasted = self._clock() - since
        known = self._durations.get(phase)
        median = statistics.median(list(known)) if known else None
        limit = self._at_first if median is None else max(self._patience, _FAR_LONGER * median)
        if lasted < max(limit, 2 * self._told_at):
            return None
        self._told_at = lasted
        usual = "it was not done before" if median is None else f"{median:.2g} s is usual"
        return f"step {step} has been {phase} for {lasted:.0f} s ({usual})"


@contextlib.contextmanager
def watching(watch: Watch | None = None, *, every: float = 1.0) -> Iterator[Callable[[str, int], None]]:
    """In this block a thread looks every so many seconds and warns on stderr; what it gives is told what is begun."""
    watch = watch or Watch()
    over = threading.Event()

    def look() -> None:
        while not over.wait(every):
            if said := watch.complaint():
                print(f"\nwarning: {said}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=look, name="watchdog", daemon=True)
    thread.start()
    try:
        yield watch.on_phase
    finally:
        over.set()
        thread.join()
