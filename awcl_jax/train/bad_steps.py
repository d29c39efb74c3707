"""The steps of a run whose loss or gradient was not finite, with the frames of their batches: `bad_steps.jsonl`.

Such a step changes nothing but the count of steps. A line is {"step": 7, "loss": "nan", "gradient_norm": "inf",
"frames": ["scan3/12", ...]}: the number of steps taken with it, and the ids of the frames that its batch was of.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from awcl_jax.train.json_lines import cut_after, read_lines, text_of

FILE = "bad_steps.jsonl"


class BadSteps:
    """The file of one run; made when there is something to write.

    Args:
      workdir: folder of the run.
      start_step: the last step that is kept; what an earlier start wrote of later ones will be written again.
      writes: whether this process is the one of the run that writes.

    Raises:
      InputError: a line of the file is none of these.
    """

    def __init__(self, workdir: Path, *, start_step: int, writes: bool = True) -> None:
        self._path, self._writes = workdir / FILE, writes
        found = cut_after(self._path, start_step) if writes else read_lines(self._path)
        self.in_a_row = trailing([line["step"] for line in found], start_step)

    def write(self, step: int, *, loss: float, gradient_norm: float, frames: Sequence[str]) -> None:
        """Adds a line, which outlives the machine."""
        if not self._writes:
            return
        line = {"step": step, "loss": str(loss), "gradient_norm": str(gradient_norm), "frames": list(frames)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text_of(line))
            file.flush()
            os.fsync(file.fileno())


def trailing(steps: Sequence[int], last: int) -> int:
    """How many of these steps, from `last` backwards, follow each other without a gap."""
    known, count = set(steps), 0
    while last - count in known:
        count += 1
    return count
