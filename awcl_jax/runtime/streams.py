"""Standard output and error that cannot end a command: what cannot be printed is dropped.

A service manager may start a command with these closed, and a log's disk may fill up in the middle of a run.
"""

import io
import os
import sys


def keep_printing() -> None:
    """Make `sys.stdout` and `sys.stderr` drop what cannot be written, and show each line at once.

    Call it before anything is opened.

    A stream that is closed goes to the null device, because the next file that is opened would otherwise get its
    number, and with it what libraries print. A reader that has gone (`| head`) still raises `BrokenPipeError`. Streams
    that somebody else has put in place, such as a notebook's, stay.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _occupy(number)
            raw = io.FileIO(os.devnull, "w")
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8"))
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            kept = io.TextIOWrapper(
                io.BufferedWriter(_Dropping(stream.fileno(), "w", closefd=False)),
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=True,  # a log of a run that lasts for hours is read while it grows
            )
            setattr(sys, name, kept)


class _Dropping(io.FileIO):
    """A file whose writes never fail, but for a reader that has gone."""

    def write(self, data: object) -> int:
        try:
            written = super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:
            raise
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written  # type: ignore[arg-type]


def _occupy(number: int) -> None:
    """Open the null device under this number if nothing is."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != number:
            os.dup2(null, number)
            os.close(null)
