"""What a run shows while it trains: a bar on a terminal, a line now and then in a file, and how long it will take."""

import math
import statistics
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from awcl_jax.runtime.bar import Bar

_TICK = 1.0  # seconds between two looks of the thread
_LINE_EVERY = 60.0  # seconds between two lines where there is no terminal
_FIRST_ESTIMATE = 10.0  # seconds of steps, after which the run's time is estimated
_REMEMBERED = 100  # durations of steps, for their mean


@runtime_checkable
class Periodic(Protocol):
    """What happens every so many steps."""

    @property
    def phase(self) -> str:
        """What it does, in a word."""

    @property
    def every(self) -> int:
        """In steps; it also happens after the last one."""


class Estimate:
    """The remaining time of a run, from how long its steps and events have taken.

    Args:
      start: number of steps taken before.
      steps: of the whole run.
      events: that happen between steps; of one phase all take the same.
    """

    def __init__(self, *, start: int, steps: int, events: Sequence[Periodic] = ()) -> None:
        self._steps, self._events = steps, events
        self._step_times: deque[float] = deque(maxlen=_REMEMBERED)
        self._event_times: defaultdict[str, list[float]] = defaultdict(list)
        self._done = start

    def step(self, done: int, seconds: float) -> None:
        """Record a step."""
        self._done = done
        self._step_times.append(seconds)

    def event(self, phase: str, seconds: float) -> None:
        """Record an event."""
        self._event_times[phase].append(seconds)

    @property
    def unknown(self) -> list[str]:
        """The phases of events that are still to come and have not been seen."""
        coming = {event.phase for event in self._events if self._coming(event)}
        return sorted(coming - self._event_times.keys())

    def remaining(self) -> float | None:
        """Return the seconds until the last step and its events; None before the first step.

            remaining = (steps left) mean(last steps) + sum over events of (times left) mean(its durations)

        An event that has not happened yet counts as nothing, see `unknown`.
        """
        if not self._step_times:
            return None
        # Without the first one, which warms up. A mean, because steps are started ahead and a few of them wait for all.
        times = list(self._step_times)[1:] or list(self._step_times)
        seconds = (self._steps - self._done) * statistics.mean(times)
        for event in self._events:
            if known := self._event_times.get(event.phase):
                seconds += self._coming(event) * statistics.mean(known[1:] or known)  # the first one compiles
        return seconds

    def _coming(self, event: Periodic) -> int:
        counted = self._steps // event.every - self._done // event.every
        return counted + (self._steps % event.every != 0 and self._done < self._steps)


class Progress:
    """The progress of a run's steps; use as a context manager.

    On a terminal it is a bar that shows the phase and moves on while a long phase lasts. Elsewhere, such as in a file,
    it is a line a minute at most. An estimate of the whole run's time is printed once it is known, and again when the
    first evaluation has shown how long these take.

    Args:
      start: number of steps taken before.
      steps: of the whole run.
      events: between steps.
      shown: whether anything is printed.
      to: stream, by default standard error.
      clock: returns seconds.
    """

    def __init__(
        self,
        *,
        start: int,
        steps: int,
        events: Sequence[Periodic] = (),
        shown: bool = True,
        to: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start, self._steps, self._shown, self._clock = start, steps, shown, clock
        self._to = sys.stderr if to is None else to
        self._terminal = self._to.isatty()
        self._estimate = Estimate(start=start, steps=steps, events=events)
        self._phase, self._since, self._numbers, self._done = "starting", clock(), "", start
        self._began = self._last_line = self._before = clock()
        self._announced: list[str] | None = None
        self._bar: Bar | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()  # of what is printed
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)

    def step(self, done: int) -> None:
        """Record that a step has ended, or with steps started ahead, that it was started."""
        now = self._clock()
        self._estimate.step(done, now - self._before)
        self._before, self._done = now, done
        self._enter("training")
        if self._bar is not None:
            with self._lock:
                self._bar.update()
        if self._announced is None and now - self._began >= _FIRST_ESTIMATE:
            self._announce()

    def event(self, phase: str) -> None:
        """Record that an event begins."""
        self._enter(phase)

    def event_ended(self) -> None:
        """Record that it has ended."""
        now = self._clock()
        self._estimate.event(self._phase, now - self._since)
        if self._announced and self._phase in self._announced:
            self._announce()
        self._enter("training")
        self._before = now

    def numbers(self, text: str) -> None:
        """Set the numbers to show, such as the loss."""
        self._numbers = text

    def _enter(self, phase: str) -> None:
        self._phase, self._since = phase, self._clock()
        if self._bar is not None:
            with self._lock:
                self._bar.set_description_str(phase, refresh=False)

    def _announce(self) -> None:
        """Print how long the rest of the steps takes."""
        remaining = self._estimate.remaining()
        if remaining is None or not self._shown:
            return
        self._announced = self._estimate.unknown
        left = self._steps - self._done
        without = f" (not counting {' and '.join(self._announced)})" if self._announced else ""
        self._print(f"About {duration(remaining)} for the remaining {left:,} of {self._steps:,} steps{without}.")

    def _print(self, line: str) -> None:
        with self._lock:
            if self._bar is None:
                print(line, file=self._to, flush=True)
                self._last_line = self._clock()
            else:
                self._bar.write(line, file=self._to)

    def _tick(self) -> None:
        while not self._over.wait(_TICK):
            self.refresh()

    def refresh(self) -> None:
        """Show the phase and the remaining time; called by a thread every second."""
        now = self._clock()
        lasted = now - self._since
        phase = self._phase if self._phase == "training" else f"{self._phase} ({lasted:.0f} s)"
        remaining = self._estimate.remaining()
        left = [f"{duration(remaining)} left"] if remaining else []
        if self._bar is not None:
            with self._lock:
                self._bar.set_description_str(phase, refresh=False)
                self._bar.set_postfix_str(", ".join(filter(None, [self._numbers, *left])), refresh=False)
                self._bar.refresh()
        elif self._shown and now - self._last_line >= _LINE_EVERY:
            shown = [f"step {self._done:,} of {self._steps:,}", phase, self._numbers, *left]
            self._print(", ".join(filter(None, shown)))

    def __enter__(self) -> "Progress":
        """Show the bar and start the thread."""
        if self._shown and self._start < self._steps:
            self._began = self._last_line = self._before = self._since = self._clock()
            if self._terminal:
                self._bar = Bar(
                    initial=self._start,
                    total=self._steps,
                    file=self._to,
                    dynamic_ncols=True,
                    desc="training",
                    bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
                )
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread, and leave the bar as it is."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
            if self._bar is not None:
                self.refresh()
                self._bar.close()
            elif kind is None:
                shown = [f"step {self._done:,} of {self._steps:,}", self._numbers]
                self._print(", ".join(filter(None, [*shown, f"{duration(self._clock() - self._began)} in all"])))


def duration(seconds: float) -> str:
    """Return a duration in one or two units: `40 s`, `3 min`, `2 h 10 min`, `3 days 4 h`."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} days {hours} h"
