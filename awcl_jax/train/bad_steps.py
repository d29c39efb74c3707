"""The steps of a run whose loss or gradient was not finite, with the frames of their batches: `bad_steps.jsonl`.

Such a step changes nothing but the count of steps. A line is {"step": 7, "loss": "nan", "gradient_norm": "inf",
"frames": ["scan3/12", ...]}: the number of steps taken with it, and the ids of the frames that its batch was of.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import written_whole

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
        found = _read(self._path)
        kept = [line for line in found if line["step"] <= start_step]
        self.in_a_row = trailing([line["step"] for line in kept], start_step)
        if writes and self._path.is_file():
            with written_whole(self._path) as part:
                part.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, *, loss: float, gradient_norm: float, frames: Sequence[str]) -> None:
        """Adds a line, which outlives the machine."""
        if not self._writes:
            return
        line = {"step": step, "loss": str(loss), "gradient_norm": str(gradient_norm), "frames": list(frames)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def trailing(steps: Sequence[int], last: int) -> int:
    """How many of these steps, from `last` backwards, follow each other without a gap."""
    known, count = set(steps), 0
    while last - count in known:
        count += 1
    return count


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of the file.

    Raises:
      InputError: one is no JSON object with a step.
    """
    # A line that a death tore has no end.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.is_file() else []
    return [_parse(line, number, path) for number, line in enumerate(lines, start=1) if line]


def _parse(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(line)
        whole = isinstance(found["step"], int)
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise InputError(f"Line {number} of {path} is no JSON object with a step: mend or remove it.")
    return found
