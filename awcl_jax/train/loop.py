"""The training loop: steps, progress, metrics and periodic events."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from awcl_jax.data.pipeline import Batch
from awcl_jax.runtime.errors import InputError, RunStopped
from awcl_jax.train.progress import Progress

Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Event:
    """An action after every `every` steps, and after the last.

    Attributes:
      every: in steps.
      run: called with the number of steps taken and the state after them; if it returns True, training ends there.
      before_leaving: also run it when the run is asked to stop.
      phase: what it does, for the watchdog.
    """

    every: int
    run: Callable[[int, Any], bool | None]
    before_leaving: bool = False
    phase: str = "writing"

    def due(self, done: int, steps: int, *, leaving: bool = False) -> bool:
        """Return whether it runs after `done` of `steps` steps."""
        return done % self.every == 0 or done == steps or (leaving and self.before_leaving)


@dataclasses.dataclass(frozen=True)
class Hooks:
    """The callbacks of the training loop.

    Attributes:
      write: called with a step and its metrics.
      log_every: steps between two lines of metrics.
      events: in the order in which they run.
      should_stop: called after every step with the number of steps taken; returns whether to stop there.
      on_phase: called with each phase that begins and its step, so that the watchdog can report where a run hangs.
      show_progress: show a bar, or lines where there is no terminal (see `progress.Progress`).
    """

    write: Callable[[int, Metrics], None]
    log_every: int = 10
    events: Sequence[Event] = ()
    should_stop: Callable[[int], bool] = lambda done: False
    on_phase: Callable[[str, int], None] = lambda phase, step: None
    show_progress: bool = True

    def due(self, done: int, steps: int, *, leaving: bool) -> list[Event]:
        """Return the events that run after `done` of `steps` steps."""
        return [event for event in self.events if event.due(done, steps, leaving=leaving)]

    def logs(self, done: int, steps: int) -> bool:
        """Return whether the metrics of this step are written."""
        return done % self.log_every == 0 or done == steps


class BadStepLimit:
    """The limit on steps in a row whose loss or gradient is not finite.

    Args:
      limit: this many in a row end the run.
      in_a_row: how many ended the previous start.
      note: called with the loss and gradient norm of each such step, before any later step is reported.
    """

    def __init__(
        self, limit: int = 1, *, in_a_row: int = 0, note: Callable[[int, Metrics], None] = lambda done, values: None
    ) -> None:
        self._limit, self._in_a_row, self._note = limit, in_a_row, note

    def check(self, pending: Sequence[tuple[int, Any]]) -> Metrics:
        """Check steps, each with its metrics on the devices, and return the metrics of the latest.

        Raises:
          InputError: there were too many in a row.
        """
        values = jax.device_get([metrics for _, metrics in pending])
        for (done, _), metrics in zip(pending, values, strict=True):
            bad = [name for name in ("loss", "gradient_norm") if not math.isfinite(metrics[name])]
            self._in_a_row = self._in_a_row + 1 if bad else 0
            if bad:
                self._note(done, {name: float(metrics[name]) for name in ("loss", "gradient_norm")})
            if self._in_a_row >= self._limit:
                raise InputError(
                    f"The {bad[0].replace('_', ' ')} became {float(metrics[bad[0]])} at step {done}, the last of "
                    f"{self._in_a_row} such steps in a row (none was applied). Training stopped; bad_steps.jsonl in "
                    "the run's folder lists their frames. Lower config.optim.learning_rate, raise "
                    "config.optim.warmup_steps or set config.optim.clip_norm, and start in a new folder."
                )
        return {name: float(value) for name, value in values[-1].items()}


def train(
    state: Any,
    step: Callable[[Any, Any], tuple[Any, Any]],
    batches: Iterable[Batch],
    *,
    place: Callable[[Any], Any],
    start: int,
    steps: int,
    batch_size: int,
    hooks: Hooks,
    bad_steps: BadStepLimit | None = None,
    one_by_one: bool = False,
) -> Any:
    """Take the remaining steps of a run.

    Args:
      state: after `start` steps.
      step: (state, placed batch) -> (state, metrics).
      batches: of steps `start` to `steps`.
      place: puts a batch's arrays on the devices.
      start: number of steps taken.
      steps: number of steps of the whole run.
      batch_size: frames in a global batch, for the rate.
      hooks: callbacks for metrics, events and stopping.
      bad_steps: limit on steps whose loss or gradient is not finite; by default the first ends the run.
      one_by_one: wait for each step before starting the next. Steps started ahead hold memory; that pays off if the
        host prepares one step while the devices run another, but not if host and devices are the same cores.

    Returns:
      The state after `steps` steps, or after those at which an event ended the training.

    Raises:
      InputError: the loss or the gradient was not finite for too many steps in a row.
      RunStopped: the run was asked to stop; the events due then have run.
    """
    bad_steps = bad_steps or BadStepLimit()
    pending: list[tuple[int, Any]] = []
    since, waited = time.perf_counter(), 0.0
    with Progress(start=start, steps=steps, events=hooks.events, shown=hooks.show_progress) as progress:
        before = time.perf_counter()
        hooks.on_phase("waiting for data", start + 1)
        for batch in batches:
            # Take a step.
            waited += time.perf_counter() - before
            done = batch.step + 1
            hooks.on_phase("starting a step", done)
            state, values = step(state, place(batch.arrays))
            pending.append((done, values))
            if one_by_one:
                hooks.on_phase("waiting for the devices", done)
                jax.block_until_ready(values)
            progress.step(done)

            # Report: the only place where numbers are fetched from the devices.
            leaving = hooks.should_stop(done)
            due, logs = hooks.due(done, steps, leaving=leaving), hooks.logs(done, steps)
            if due or leaving or logs:
                hooks.on_phase("waiting for the devices", done)
                latest = bad_steps.check(pending)
                now = time.perf_counter()
                speed = len(pending) * batch_size / (now - since)
                progress.numbers(f"loss {latest['loss']:.3f}, {speed:.0f} frames/s")
                if logs:
                    composed = {f"batch/{name}": value for name, value in batch.composition.items()}
                    timing = {"frames_per_second": speed, "data_wait_share": waited / (now - since)}
                    hooks.write(done, latest | composed | timing)

                # Evaluate, save, leave.
                ended = []
                for event in due:
                    hooks.on_phase(event.phase, done)
                    progress.event(event.phase)
                    ended.append(event.run(done, state))
                    progress.event_ended()
                if leaving:
                    raise RunStopped(f"stopped after step {done} of {steps} (saved); rerun the same command to resume")
                if any(ended):
                    break
                pending, since, waited = [], time.perf_counter(), 0.0
            before = time.perf_counter()
            hooks.on_phase("waiting for data", done + 1)
    return state
