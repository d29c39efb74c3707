"""Write and read a run's metrics: `metrics.jsonl` and TensorBoard's files."""

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.hidden_modules import hidden
from awcl_jax.train.json_lines import bad_line, cut_after, read_lines, text_of

with hidden("torch"):  # tensorboardX imports all of it for one type annotation
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """A writer of a run's metrics to `metrics.jsonl`, one JSON object per line, and to TensorBoard in `tensorboard/`.

    A line is `{"step": 100, "loss": 4.2, ...}`; a step may have several (training metrics, then an evaluator's).
    JSON has no nan or infinity, so these are the strings "nan", "inf" and "-inf"; `read_metrics` turns them back.

    A run that dies after its last checkpoint has written steps that the resumed run takes again. Opening with that
    checkpoint's step therefore removes later steps, and an unfinished line, from the file, and hides them in
    TensorBoard. Only one process of a run may have a writer.

        with MetricsWriter(workdir, start_step=0) as metrics:
            metrics.write(1, {"loss": 4.2})

    Args:
      workdir: folder of the run; created if it does not exist.
      start_step: the last step to keep, 0 for a new run.

    Raises:
      InputError: `metrics.jsonl` exists but does not hold metrics.
    """

    def __init__(self, workdir: Path, *, start_step: int) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / METRICS_FILE
        if self._path.is_file():
            read_metrics(self._path)  # rejects a file of other content before it is cut
        cut_after(self._path, start_step)
        self._lines = self._path.open("a", encoding="utf-8")
        self._board = _Board(workdir / "tensorboard", start_step=start_step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a step's numbers; each value is a number or an array of one, and no name is "step".

        Raises:
          OSError: the disk is full or cannot be written to.
        """
        assert "step" not in values, "the step is passed separately from the numbers"
        numbers = {name: float(value) for name, value in values.items()}
        written = {name: number if math.isfinite(number) else str(number) for name, number in numbers.items()}
        with self._trouble_in_words():
            self._lines.write(text_of({"step": int(step), **written}))
            self._lines.flush()
            for name, number in numbers.items():
                self._board.add(step, summary.scalar(name, number))

    def sync(self) -> None:
        """Wait until everything written so far is on disk, as a checkpoint of the same step is.

        Raises:
          OSError: as `write`.
        """
        with self._trouble_in_words():
            os.fsync(self._lines.fileno())
            self._board.flush()

    def close(self) -> None:
        """Write what is pending and close both files; the writer cannot be used afterwards."""
        with self._trouble_in_words():
            try:
                self._lines.close()
            finally:
                self._board.close()

    @contextlib.contextmanager
    def _trouble_in_words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"{error.strerror or error} for metrics. Fix that and rerun the same command"
            raise OSError(error.errno, message, str(self._path)) from error

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error that ends the run is reported; a second one from closing the files is not.
        with contextlib.suppress(*([] if error is None else [OSError])):
            self.close()


class _Board:
    """TensorBoard's file, written by the caller's thread, so that a full disk raises where it happens.

    (tensorboardX's `SummaryWriter` writes in a thread: if that dies, the run waits for it forever.)
    """

    _FLUSH_EVERY = 30  # seconds

    def __init__(self, folder: Path, *, start_step: int, suffix: str = "curves") -> None:
        folder.mkdir(exist_ok=True)
        # tensorboardX names a file by the second: the suffix distinguishes two files of one second.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{suffix}")
        self._flushed = time.monotonic()
        # Hides later steps that an earlier start wrote.
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=start_step + 1, session_log=start))

    def add(self, step: int, content: Summary) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=content))
        if time.monotonic() - self._flushed > self._FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


class NoMetrics:
    """A writer that writes nothing, for processes whose run's metrics the first process writes."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""


def show_pictures(workdir: Path, step: int) -> None:
    """Add the pictures in a run's folder, `pairs.png` as `pictures/pairs` and so on, to its TensorBoard.

    TensorBoard shows only the scalars of a tag that both a scalar and a picture have, such as `loss`.
    """
    with contextlib.closing(_Board(workdir / "tensorboard", start_step=step, suffix="pictures")) as board:
        for path in sorted(workdir.glob("*.png")):
            with Image.open(path) as picture:
                board.add(
                    step, summary.image(f"pictures/{path.stem}", np.asarray(picture.convert("RGB")), dataformats="HWC")
                )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`: each a dict with the int "step" and floats, nan and infinities among them.

    An unfinished last line (the run died there, or is writing it) is left out.

    Raises:
      InputError: the file does not exist, or a line is not a JSON object with a step.
    """
    if not path.is_file():
        raise InputError(f"{path} not found. Pass the {METRICS_FILE} in the folder of a run.")
    return [_numbers(line, number, path) for number, line in enumerate(read_lines(path), start=1)]


def _numbers(line: dict[str, Any], number: int, path: Path) -> dict[str, Any]:
    try:
        return {name: float(value) for name, value in line.items()} | {"step": line["step"]}
    except (ValueError, TypeError, OverflowError):
        raise bad_line(number, path, "a JSON object of numbers with a step") from None
