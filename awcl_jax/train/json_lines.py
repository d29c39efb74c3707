"""Files of one JSON object per line, each with its step, that survive runs killed while writing."""

import json
import os
from pathlib import Path
from typing import Any

from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import atomic_write

_MOST_STEPS = 2**53


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file; none if the file does not exist.

    An unfinished last line (the run died there, or is writing it) is left out.

    Raises:
      InputError: a line is not a JSON object with a step.
    """
    return [_parse(line, number, path) for number, line in enumerate(_ended_lines(path), start=1)]


def cut_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Remove the lines of later steps, which a resumed run writes again, and return the others.

    Raises:
      InputError: as `read_lines`.
    """
    texts = _ended_lines(path)
    lines = [_parse(line, number, path) for number, line in enumerate(texts, start=1)]
    kept = [index for index, line in enumerate(lines) if line["step"] <= step]
    if path.is_file():
        # A second death while cutting leaves the old file or the new one.
        with atomic_write(path) as part, part.open("w", encoding="utf-8") as file:
            file.writelines(f"{texts[index]}\n" for index in kept)
            file.flush()
            os.fsync(file.fileno())
    return [lines[index] for index in kept]


def text_of(line: dict[str, Any]) -> str:
    """Return an object as its line; JSON has no nan or infinity, so pass these as text."""
    return json.dumps(line, allow_nan=False) + "\n"


def bad_line(number: int, path: Path, what: str = "a JSON object with a step") -> InputError:
    """Return the error for a line that cannot be read."""
    return InputError(f"Line {number} of {path} is not {what}. Correct or remove it.")


def _ended_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if line]


def _parse(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(line)
        step = content["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise bad_line(number, path) from None
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < _MOST_STEPS:
        raise bad_line(number, path)
    return content
