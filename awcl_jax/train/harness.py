"""What surrounds the steps of every kind of run: its folder, its checkpoints and files, its first state."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from awcl_jax.data import about
from awcl_jax.data.pipeline import Batch
from awcl_jax.data.sampler import BatchPlan, EpochPlan
from awcl_jax.data.selection import Splits, describe
from awcl_jax.data.unreadable import write_list
from awcl_jax.runtime import kept_programs, multihost, sharding, stop_signals, watchdog
from awcl_jax.runtime.errors import InputError, first_line, in_words
from awcl_jax.runtime.memory import gc_paused
from awcl_jax.train import loggers, run_folder
from awcl_jax.train.bad_steps import BadSteps
from awcl_jax.train.checkpoint import Checkpoints
from awcl_jax.train.initial_state import FirstState
from awcl_jax.train.loop import BadStepLimit, Event, Hooks, Metrics
from awcl_jax.train.metrics import MetricsWriter, NoMetrics
from awcl_jax.train.progress import duration
from awcl_jax.train.state import TrainState
from awcl_jax.train.workdir import Workdir


def open_run(folder: Workdir, data: Splits, *, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Start a run in its folder, or check that the folder holds the same run; every process calls it.

    Args:
      folder: of the run.
      data: its frames.
      config: its configuration as plain values.
      defaults: of this kind of run, for fields that did not exist in the version that started the run.

    Raises:
      InputError: one of the processes fails, the folder holds another run, another process works in it, or the
        package of the run's logger is not installed.
    """

    def begin(*, begun: bool = False) -> None:
        run_folder.open_run(
            folder.files,
            config=config,
            defaults=defaults,
            fingerprint=data.fingerprint,
            pixels=data.pixels_fingerprint(),
            aspect=data.aspect,
            begun=begun,
            datasets=about.as_json(data.datasets),
        )

    with multihost.all_or_none():
        loggers.require(config["train"]["logger"])
        if multihost.first():
            folder.hold()
            folder.fetch()
            begin()
            folder.send()
    # The others run after the first, so that they can check whether it is the same folder.
    with multihost.all_or_none():
        if not multihost.first():
            folder.fetch()
            begin(begun=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The files and state that a run keeps while it trains.

    Attributes:
      folder: of the run.
      checkpoints: of its state.
      writer: writes its metrics.
      bad: the file of its bad steps.
      resumed: the state of the newest checkpoint; None for a new run.
      start: number of steps taken.
      should_stop: called by each process after every step with the number of steps taken; returns whether to stop.
    """

    folder: Workdir
    checkpoints: Checkpoints
    writer: loggers.Writer
    bad: BadSteps
    resumed: TrainState | None
    start: int
    should_stop: Callable[[int], bool]

    def saving(self, scores: Mapping[int, float], *, every: int) -> Event:
        """Return the event that saves a checkpoint (with its score, if any) every `every` steps and before a stop."""

        def save(done: int, state: TrainState) -> None:
            self.writer.sync()
            with multihost.all_or_none():
                self.checkpoints.save(done, state, score=scores.get(done))
                self.folder.send(after=self.checkpoints.wait)

        return Event(every, save, before_leaving=True, phase="saving")

    def bad_step_limit(self, limit: int, plan: BatchPlan | EpochPlan, ids: np.ndarray) -> BadStepLimit:
        """Return the check that records each skipped step, and ends the run after `limit` of them in a row.

        Args:
          limit: in a row.
          plan: the frames of each batch.
          ids: of the frames that the plan numbers.
        """

        def note(done: int, values: Metrics) -> None:
            frames = plan.frames(done - 1)
            if isinstance(plan, BatchPlan) and plan.pairs == "cross_scan":
                frames = np.concatenate([frames, plan.partners(done - 1)])
            self.bad.write(done, **values, frames=ids[frames].tolist())
            say(f"warning: step {done} was skipped: loss {values['loss']}, gradient norm {values['gradient_norm']}")

        return BadStepLimit(limit, in_a_row=self.bad.in_a_row, note=note)


@contextlib.contextmanager
def open_records(folder: Workdir, shapes: TrainState, mesh: Mesh, *, config: Mapping[str, Any]) -> Iterator[Records]:
    """Open the files that a run keeps while it trains; leaving the block closes them when all is written.

    From here on SIGTERM and ctrl-C are noticed after a step, and cannot interrupt what is being written.

    Args:
      folder: of the run.
      shapes: of its state on one device.
      mesh: devices to place the state on.
      config: of the run, as plain values.
    """
    with contextlib.ExitStack() as stack:
        # The outermost: a checkpoint is complete only when the others are left.
        should_stop = stack.enter_context(stop_signals.noticed())
        checkpoints = stack.enter_context(Checkpoints(folder.files))
        newest = checkpoints.newest(sharding.replicated_shapes(shapes, mesh), warn=lambda line: say(f"warning: {line}"))
        start, resumed = (0, None) if newest is None else newest
        if newest is not None:
            say(f"Resuming from step {start} of {config['train']['steps']}.")
        writer: loggers.Writer = NoMetrics()
        if multihost.first():
            writer = stack.enter_context(MetricsWriter(folder.files, start_step=start))
            if config["train"]["logger"] == "wandb":
                writer = stack.enter_context(_wandb_beside(writer, folder, config))
        bad = BadSteps(folder.files, start_step=start, writes=multihost.first())
        yield Records(folder, checkpoints, writer, bad, resumed, start, should_stop)


def _wandb_beside(writer: loggers.Writer, folder: Workdir, config: Mapping[str, Any]) -> loggers.WandbLogger:
    """Return the writer that also sends the run's metrics to W&B, with the settings that decide them."""
    fields = about.recorded_fields(dict(run_folder.flattened(config)), run_folder.shared_fields(config))
    logger = loggers.WandbLogger(
        writer, folder.files, name=config["name"], fields=fields, warn=lambda line: say(f"warning: {line}")
    )
    if logger.address:
        say(f"Metrics are at {logger.address}")
    return logger


@contextlib.contextmanager
def attended(records: Records, *, log_every: int, events: Sequence[Event]) -> Iterator[Hooks]:
    """Watch for hangs in this block; yield the hooks of the training loop.

    Args:
      records: of the run.
      log_every: steps between two lines of metrics.
      events: in the order in which they run.
    """
    with watchdog.watching() as on_phase:
        yield Hooks(
            write=records.writer.write,
            log_every=log_every,
            events=events,
            should_stop=records.should_stop,
            on_phase=on_phase,
            show_progress=multihost.first(),
        )


@lru_cache(maxsize=32)
def step_on(mesh: Mesh, body: sharding.Step, *, via: str) -> sharding.Step:
    """Return the training step over these devices, compiled once."""
    return sharding.map_step(body, mesh, via=via)


def begin(
    first: FirstState,
    step: sharding.Step,
    batches: Iterator[Batch],
    *,
    mesh: Mesh,
    records: Records,
    hooks: Hooks,
    name: kept_programs.Name | None = None,
    compile_aside: Callable[[Batch], object] | None = None,
) -> tuple[TrainState, sharding.Step, Iterator[Batch]]:
    """Compile the step while the initial state may still be computed.

    Args:
      first: the state before the first step.
      step: to compile.
      batches: the remaining ones.
      mesh: devices of the run.
      records: of the run, with the step and state to resume from.
      hooks: whose `on_phase` is called.
      name: what decides the step's program besides the batch's shapes; see `sharding.compile_step`.
      compile_aside: called with a batch if the program is not kept yet; may keep it from another process.

    Returns:
      The state to train from, on the devices; the compiled step; and the batches, the first of which is already read.
    """
    hooks.on_phase("waiting for data", records.start + 1)
    ahead = list(islice(batches, 1))
    hooks.on_phase("compiling the step", records.start + 1)
    with gc_paused():
        for batch in ahead:
            say("Compiling the step, or reading it from the cache ...")
            began = time.monotonic()
            placed = sharding.place_batch(batch.arrays, mesh)
            if name is not None and compile_aside is not None:
                kept_programs.compile_aside(
                    sharding.step_name(name, placed), list(mesh.devices.flat), partial(compile_aside, batch)
                )
            step = sharding.compile_step(
                step, sharding.replicated_shapes(first.shapes, mesh), placed, mesh=mesh, name=name
            )
            say(f"  ready after {duration(time.monotonic() - began)}; training begins.")
    hooks.on_phase("waiting for the state", records.start + 1)
    state = first.place(mesh) if records.resumed is None else records.resumed
    return state, sharding.keep_place(step), chain(ahead, batches)


@contextlib.contextmanager
def after_training(folder: Workdir) -> Iterator[None]:
    """Say, if anything fails in this block, that the encoder is saved and how to get the rest.

    Raises:
      InputError: instead of one, of an `OSError` and of a `MemoryError`, with this hint. Other errors get it as a note.
    """
    hint = f"Training is complete and saved in {folder.home}; rerun the same command for the rest of the results."
    try:
        yield
    except BrokenPipeError:
        raise  # nobody reads what is printed
    except (InputError, OSError) as error:
        raise InputError(f"{in_words(error)} {hint}") from error
    except MemoryError as error:
        raise InputError(f"Not enough memory to score the encoder ({first_line(error)}). {hint}") from error
    except Exception as error:
        error.add_note(hint)
        raise


def report_data(data: Splits, folder: Workdir) -> None:
    """Print counts of the frames, and list those left out in a file of the run's folder."""
    say(describe(data))
    if data.left_out and multihost.first():
        write_list(data.left_out, folder.files / run_folder.UNREADABLE_FILE)
        say(f"  they are listed in {folder.home}/{run_folder.UNREADABLE_FILE}")


def report_initial(initial: Mapping[str, str]) -> None:
    """Print in one line what a run starts from: `source`, and what of it is `loaded` and what is `new`.

    A `warning` on it is another line.
    """
    say(f"Starting from {initial['source']}: loaded {initial['loaded']}; new: {initial['new']}.")
    if "warning" in initial:
        say(f"warning: {initial['warning']}")


def where_to_look(page: Path | None, folder: Workdir) -> str:
    """Return the end of a run's last line, which names its page if there is one."""
    return f"; open {folder.home}/{page.name}" if page else ""


def say(message: str) -> None:
    """Print on the first process only."""
    if multihost.first():
        print(message, flush=True)
