"""The training loop: steps, progress, metrics, and what happens every so often."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from tqdm import tqdm

from awcl_jax.data.pipeline import Batch
from awcl_jax.errors import InputError, Interrupted

Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Event:
    """Something done after every `every` steps, and after the last.

    Attributes:
      every: in steps.
      run: called with the number of steps taken and the state after them; where it returns True, training ends there.
      before_leaving: run it also where the run is asked to stop.
      doing: what it does, for who watches.
    """

    every: int
    run: Callable[[int, Any], bool | None]
    before_leaving: bool = False
    doing: str = "writing"

    def due(self, done: int, steps: int, *, leaving: bool = False) -> bool:
        """Whether it runs once `done` of `steps` steps are taken."""
        return done % self.every == 0 or done == steps or (leaving and self.before_leaving)


def train(
    state: Any,
    step: Callable[[Any, Any], tuple[Any, Any]],
    batches: Iterable[Batch],
    *,
    place: Callable[[Any], Any],
    start: int,
    steps: int,
    batch_size: int,
    log_every: int,
    write: Callable[[int, Metrics], None],
    events: Sequence[Event] = (),
    asked_to_stop: Callable[[int], bool] = lambda done: False,
    begin: Callable[[str, int], None] = lambda doing, step: None,
    bad_steps: int = 1,
    bad_in_a_row: int = 0,
    note_bad: Callable[[int, Metrics], None] = lambda done, values: None,
    one_by_one: bool = False,
    show_progress: bool = True,
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
      log_every: steps between two lines of metrics.
      write: takes a step's metrics.
      events: in the order in which they run.
      asked_to_stop: asked after every step, with the number of steps taken, whether the run is to stop there.
      begin: told of all that is begun, and in which step, so that somebody can tell where a run hangs.
      bad_steps: so many steps in a row whose loss or gradient is not finite end the run.
      bad_in_a_row: how many the last of the `start` steps were.
      note_bad: takes the metrics of each such step, before the metrics and events of any later one.
      one_by_one: wait for each step before the next one is begun. Those that are begun ahead hold their memory, which
        pays where the host prepares one step while the devices take another, and not where they are the same cores.
      show_progress: draw a bar.

    Returns:
      The state after `steps` steps, or after those at which an event ended the training.

    Raises:
      InputError: the loss or the gradient was not finite for `bad_steps` steps in a row.
      Interrupted: the run was asked to stop; what is due then has run.
    """
    log = Event(log_every, lambda *_: None)
    pending: list[tuple[int, Any]] = []
    since, waited = time.perf_counter(), 0.0
    bar = tqdm(initial=start, total=steps, unit="step", disable=not show_progress, dynamic_ncols=True)
    with bar:
        before = time.perf_counter()
        begin("waiting for data", start + 1)
        for batch in batches:
            waited += time.perf_counter() - before
            begin("starting a step", batch.step + 1)
            state, values = step(state, place(batch.arrays))
            done = batch.step + 1
            pending.append((done, values))
            if one_by_one:
                begin("waiting for the devices", done)
                jax.block_until_ready(values)
            bar.update()
            leaving = asked_to_stop(done)
            due = [event for event in events if event.due(done, steps, leaving=leaving)]
            if due or leaving or log.due(done, steps):
                begin("waiting for the devices", done)
                latest, bad_in_a_row = _look_for_bad(pending, bad_in_a_row, limit=bad_steps, note=note_bad)
                now = time.perf_counter()
                speed = len(pending) * batch_size / (now - since)
                bar.set_postfix_str(f"loss {latest['loss']:.3f}, {speed:.0f} frames/s")
                if log.due(done, steps):
                    composed = {f"batch/{name}": value for name, value in batch.composition.items()}
                    timing = {"frames_per_second": speed, "data_wait_share": waited / (now - since)}
                    write(done, latest | composed | timing)
                ended = []
                for event in due:
                    begin(event.doing, done)
                    ended.append(event.run(done, state))
                if leaving:
                    raise Interrupted(f"stopped after step {done} of {steps}, which is saved; the same command goes on")
                if any(ended):
                    break
                pending, since, waited = [], time.perf_counter(), 0.0
            before = time.perf_counter()
            begin("waiting for data", done + 1)
    return state


def _look_for_bad(
    pending: list[tuple[int, Any]], in_a_row: int, *, limit: int, note: Callable[[int, Metrics], None]
) -> tuple[Metrics, int]:
    """Metrics of the latest of these steps, and how many of the last were bad: their loss or gradient is not finite."""
    values = jax.device_get([metrics for _, metrics in pending])
    for (done, _), metrics in zip(pending, values, strict=True):
        bad = [name for name in ("loss", "gradient_norm") if not math.isfinite(metrics[name])]
        in_a_row = in_a_row + 1 if bad else 0
        if bad:
            note(done, {name: float(metrics[name]) for name in ("loss", "gradient_norm")})
        if in_a_row >= limit:
            raise InputError(
                f"The {bad[0].replace('_', ' ')} became {float(metrics[bad[0]])} at step {done}, the last of "
                f"{in_a_row} such steps in a row, none of which was applied: stopped. bad_steps.jsonl in its folder "
                "names their frames; lower config.optim.learning_rate, lengthen config.optim.warmup_steps or set "
                "config.optim.clip_norm, and start in a new folder."
            )
    return {name: float(value) for name, value in values[-1].items()}, in_a_row
