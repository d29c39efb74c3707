"""The training loop: steps, progress, metrics, and what happens every so often."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from tqdm import tqdm

from awcl_jax.data.pipeline import Batch
from awcl_jax.runtime.errors import InputError, RunStopped

Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Event:
    """Something done after every `every` steps, and after the last.

    Attributes:
      every: in steps.
      run: called with the number of steps taken and the state after them; where it returns True, training ends there.
      before_leaving: run it also where the run is asked to stop.
      phase: what it does, for the watchdog.
    """

    every: int
    run: Callable[[int, Any], bool | None]
    before_leaving: bool = False
    phase: str = "writing"

    def due(self, done: int, steps: int, *, leaving: bool = False) -> bool:
        """Whether it runs once `done` of `steps` steps are taken."""
        return done % self.every == 0 or done == steps or (leaving and self.before_leaving)


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What happens beside the steps.

    Attributes:
      write: takes a step's metrics.
      log_every: steps between two lines of metrics.
      events: in the order in which they run.
      should_stop: asked after every step, with the number of steps taken, whether the run is to stop there.
      on_phase: called with each phase that begins and its step, so that the watchdog can name where a run hangs.
      show_progress: draw a bar.
    """

    write: Callable[[int, Metrics], None]
    log_every: int = 10
    events: Sequence[Event] = ()
    should_stop: Callable[[int], bool] = lambda done: False
    on_phase: Callable[[str, int], None] = lambda phase, step: None
    show_progress: bool = True

    def due(self, done: int, steps: int, *, leaving: bool) -> list[Event]:
        """The events that run once `done` of `steps` steps are taken."""
        return [event for event in self.events if event.due(done, steps, leaving=leaving)]

    def logs(self, done: int, steps: int) -> bool:
        """Whether the metrics of this step are written."""
        return done % self.log_every == 0 or done == steps


class BadStepLimit:
    """Ends a run whose loss or gradient is not finite for too many steps in a row.

    Args:
      limit: so many in a row end the run.
      in_a_row: how many the last steps before this start were.
      note: takes the loss and the gradient's norm of each such step, before any later one is reported.
    """

    def __init__(
        self, limit: int = 1, *, in_a_row: int = 0, note: Callable[[int, Metrics], None] = lambda done, values: None
    ) -> None:
        self._limit, self._in_a_row, self._note = limit, in_a_row, note

    def check(self, pending: Sequence[tuple[int, Any]]) -> Metrics:
        """Look at steps, each with its metrics on the devices, and return the metrics of the latest.

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
                    f"{self._in_a_row} such steps in a row, none of which was applied: stopped. bad_steps.jsonl in its "
                    "folder names their frames; lower config.optim.learning_rate, lengthen config.optim.warmup_steps "
                    "or set config.optim.clip_norm, and start in a new folder."
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
    """Take all steps of a run that are not taken yet.

    Args:
      state: after `start` steps.
      step: (state, placed batch) -> (state, metrics).
      batches: of steps `start` to `steps`.
      place: puts a batch's arrays on the devices.
      start: number of steps taken.
      steps: number of steps of the whole run.
      batch_size: frames in a global batch, for the rate.
      hooks: what happens beside the steps.
      bad_steps: when steps whose loss or gradient is not finite end the run; by default the first does.
      one_by_one: wait for each step before the next one is begun. Those that are begun ahead hold their memory, which
        pays where the host prepares one step while the devices take another, and not where they are the same cores.

    Returns:
      The state after `steps` steps, or after those at which an event ended the training.

    Raises:
      InputError: the loss or the gradient was not finite for too many steps in a row.
      RunStopped: the run was asked to stop; what is due then has run.
    """
    bad_steps = bad_steps or BadStepLimit()
    pending: list[tuple[int, Any]] = []
    since, waited = time.perf_counter(), 0.0
    bar = tqdm(initial=start, total=steps, unit="step", disable=not hooks.show_progress, dynamic_ncols=True)
    with bar:
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
            bar.update()

            # Report: only now are numbers fetched from the devices.
            leaving = hooks.should_stop(done)
            due, logs = hooks.due(done, steps, leaving=leaving), hooks.logs(done, steps)
            if due or leaving or logs:
                hooks.on_phase("waiting for the devices", done)
                latest = bad_steps.check(pending)
                now = time.perf_counter()
                speed = len(pending) * batch_size / (now - since)
                bar.set_postfix_str(f"loss {latest['loss']:.3f}, {speed:.0f} frames/s")
                if logs:
                    composed = {f"batch/{name}": value for name, value in batch.composition.items()}
                    timing = {"frames_per_second": speed, "data_wait_share": waited / (now - since)}
                    hooks.write(done, latest | composed | timing)

                # Evaluate, save, leave.
                ended = []
                for event in due:
                    hooks.on_phase(event.phase, done)
                    ended.append(event.run(done, state))
                if leaving:
                    raise RunStopped(f"stopped after step {done} of {steps}, which is saved; the same command goes on")
                if any(ended):
                    break
                pending, since, waited = [], time.perf_counter(), 0.0
            before = time.perf_counter()
            hooks.on_phase("waiting for data", done + 1)
    return state
