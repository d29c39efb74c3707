"""The steps of a run whose loss or gradient was not finite, with the frames of their batches: `bad_steps.jsonl`.

Such a step changes only the step count. A line is {"step": 7, "loss": "nan", "gradient_norm": "inf",
"frames": ["scan3/12", ...]}: the number of steps taken including it, and the ids of the frames in its batch.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from awcl_jax.train.json_lines import cut_after, read_lines, text_of

FILE = "bad_steps.jsonl"


class BadSteps:
    """The file of one run; created at the first bad step.

    Args:
      workdir: folder of the run.
      start_step: the last step to keep; later lines of an earlier start will be written again.
      writes: whether this process writes for the run.

    Raises:
      InputError: a line of the file is not such a line.
    """

    def __init__(self, workdir: Path, *, start_step: int, writes: bool = True) -> None:
        self._path, self._writes = workdir / FILE, writes
        lines = cut_after(self._path, start_step) if writes else read_lines(self._path)
        self.in_a_row = trailing([line["step"] for line in lines], start_step)

    def write(self, step: int, *, loss: float, gradient_norm: float, frames: Sequence[str]) -> None:
        """Add a line, and wait until it is on disk."""
        if not self._writes:
            return
        line = {"step": step, "loss": str(loss), "gradient_norm": str(gradient_norm), "frames": list(frames)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text_of(line))
            file.flush()
            os.fsync(file.fileno())


def trailing(steps: Sequence[int], last: int) -> int:
    """Count how many of these steps, from `last` backwards, follow each other without a gap."""
    known, count = set(steps), 0
    while last - count in known:
        count += 1
    return count
