"""A run's numbers: `metrics.jsonl` and TensorBoard's files, written and read."""

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.hidden_modules import hidden
from awcl_jax.train.json_lines import bad_line, cut_after, read_lines, text_of

with hidden("torch"):  # tensorboardX imports all of it, for a type in a signature
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes a run's numbers to `metrics.jsonl`, one JSON object a line, and to TensorBoard under `tensorboard/`.

    A line is `{"step": 100, "loss": 4.2, ...}`; a step may have several (training numbers, then an evaluator's).
    JSON has no nan or infinity, so these are the strings "nan", "inf" and "-inf"; `read_metrics` turns them back.

    A run that dies after its last checkpoint has written steps that the resumed run will take again. Opening with that
    checkpoint's step therefore cuts later steps, and a line broken off by the death, from the file, and hides them
    from TensorBoard. Only one process of a run may hold a writer.

        with MetricsWriter(workdir, start_step=0) as metrics:
            metrics.write(1, {"loss": 4.2})

    Args:
      workdir: folder of the run; made if it is not there.
      start_step: the last step that is kept, 0 for a new run.

    Raises:
      InputError: `metrics.jsonl` is there but is no such file.
    """

    def __init__(self, workdir: Path, *, start_step: int) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / METRICS_FILE
        if self._path.is_file():
            read_metrics(self._path)  # refuses what is not metrics before anything is cut
        cut_after(self._path, start_step)
        self._lines = self._path.open("a", encoding="utf-8")
        self._board = _Board(workdir / "tensorboard", start_step=start_step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds numbers of a step; each value a number or an array of one, and no name is "step".

        Raises:
          OSError: the disk is full or the like.
        """
        assert "step" not in values, "the step is given apart from the numbers"
        numbers = {name: float(value) for name, value in values.items()}
        written = {name: number if math.isfinite(number) else str(number) for name, number in numbers.items()}
        with self._trouble_in_words():
            self._lines.write(text_of({"step": int(step), **written}))
            self._lines.flush()
            for name, number in numbers.items():
                self._board.add(step, summary.scalar(name, number))

    def sync(self) -> None:
        """Makes sure that what is written so far outlives the machine, as a checkpoint of the same step does.

        Raises:
          OSError: as `write`.
        """
        with self._trouble_in_words():
            os.fsync(self._lines.fileno())
            self._board.flush()

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w channels"]) -> None:
        """Adds a picture, grey [h, w] or colour [h, w, 3], to TensorBoard."""
        with self._trouble_in_words():
            self._board.add(step, summary.image(name, pixels, dataformats="HW" if pixels.ndim == 2 else "HWC"))

    def close(self) -> None:
        """Writes what is pending and closes both files; the writer is of no use afterwards."""
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
            message = f"{error.strerror or error} for metrics; mend that and start the same command again"
            raise OSError(error.errno, message, str(self._path)) from error

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What ends the run is told; that the files cannot be closed then, either, is not.
        with contextlib.suppress(*([] if error is None else [OSError])):
            self.close()


class _Board:
    """TensorBoard's file. It is written when it is told to, so that a full disk is seen where it happens.

    (tensorboardX's own `SummaryWriter` writes in a thread: when that dies the run waits for it for ever.)
    """

    _FLUSH_EVERY = 30  # seconds

    def __init__(self, folder: Path, *, start_step: int, suffix: str = "curves") -> None:
        folder.mkdir(exist_ok=True)
        # tensorboardX names a file by the second: the suffix tells two of one second apart.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{suffix}")
        self._flushed = time.monotonic()
        # What an earlier start wrote of later steps is hidden.
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
    """Writes nothing, as a process of a run does whose metrics another one writes."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""


def show_pictures(workdir: Path, step: int) -> None:
    """Adds the pictures in a run's folder, `pairs.png` as `pairs` and so on, to its TensorBoard."""
    with contextlib.closing(_Board(workdir / "tensorboard", start_step=step, suffix="pictures")) as board:
        for path in sorted(workdir.glob("*.png")):
            with Image.open(path) as picture:
                board.add(step, summary.image(path.stem, np.asarray(picture.convert("RGB")), dataformats="HWC"))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`: each a dict with the int "step" and floats, nan and infinities among them.

    A last line that has not ended yet (the run died there, or is writing it) is left out.

    Raises:
      InputError: there is no such file, or a line is no JSON object with a step.
    """
    if not path.is_file():
        raise InputError(f"There are no metrics at {path}: give the {METRICS_FILE} in the folder of a run.")
    return [_numbers(line, number, path) for number, line in enumerate(read_lines(path), start=1)]


def _numbers(line: dict[str, Any], number: int, path: Path) -> dict[str, Any]:
    try:
        return {name: float(value) for name, value in line.items()} | {"step": line["step"]}
    except (ValueError, TypeError, OverflowError):
        raise bad_line(number, path, "a JSON object of numbers with a step") from None
