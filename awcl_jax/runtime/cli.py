"""How every command exits: for bad input with one line on stderr and status 1, never with a traceback."""

import contextlib
import os
import runpy
import sys
from collections.abc import Iterator
from typing import NoReturn

from awcl_jax.runtime.errors import InputError, RunStopped, first_line, in_words, of_device_memory
from awcl_jax.runtime.streams import keep_printing

SAVED = 75  # EX_TEMPFAIL of sysexits.h: rerun the same command
INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for a command ended by ctrl-C

_MORE_MEMORY = "Use a smaller batch or picture, or raise the limit, and rerun the same command."
_MORE_THREADS = (
    "Raise the limit of processes (`ulimit -u`, or of the container) or of memory, and rerun the same command."
)

COMMANDS = {
    "main": "pretrain an encoder, or train on one for a task",
    "ingest": "prepare a dataset, of your own scans or a public one",
    "embed": "features of frames, and their nearest neighbours",
    "export": "an encoder for other programs: PyTorch, ONNX, JAX",
    "report": "the page of a run, or of two to compare",
    "reproduce": "methods, tasks and seeds, and the paper's tables",
}
"""What `awcl` runs -> what it is for."""


@contextlib.contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """Turn an error that the user can fix into one line on stderr and an exit status.

    Works as a context manager and, called, as a decorator of an absl or argparse `main`:

        @exit_on_bad_input()
        def main(argv): ...

    `InputError`, `OSError` (disk full, no permission) and a lack of memory or threads exit with 1, a run that was asked
    to stop and saved with 75, ctrl-C elsewhere with 130. Every other exception is a bug in this package and keeps its
    traceback. What cannot be printed is dropped.

    Raises:
      SystemExit: in the cases above.
    """
    keep_printing()
    try:
        yield
    except InputError as error:
        _leave(f"error: {error}", 1)
    except BrokenPipeError:
        # The reader of the output (head, less) has exited. Python would fail again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError as error:
        _leave(f"error: Not enough memory ({first_line(error)}). {_MORE_MEMORY}", 1)
    except RuntimeError as error:
        if of_device_memory(error):
            _leave(f"error: Not enough memory ({first_line(error)[:200]}). {_MORE_MEMORY}", 1)
        if str(error).startswith("can't start new thread"):
            # Libraries wait at the end of Python for threads that never began.
            _print(f"error: No thread can be started. {_MORE_THREADS}")
            os._exit(1)
        if not str(error).startswith("Could not determine home directory"):  # of Path.expanduser
            raise
        _leave("error: A path begins with ~, and this user has no home folder. Write the path in full or set HOME.", 1)
    except OSError as error:
        _leave(f"error: {in_words(error)}", 1)
    except RunStopped as stopped:
        # Imported already by the run; other commands do not wait for JAX.
        from awcl_jax.runtime.stop_signals import ignore_sigterm

        ignore_sigterm()
        _leave(str(stopped), SAVED)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)


def require_name(flag: str, value: str | None) -> None:
    """Check that a flag for a file or folder is not empty, as `--out=$UNSET` is: it would mean the working folder.

    Args:
      flag: as it is shown.
      value: of the flag; None if it is not set.

    Raises:
      InputError: it is empty.
    """
    if value is not None and not value.strip():
        raise InputError(f"{flag} must not be empty. Name a file or folder; . is this folder.")


def silence_libraries() -> None:
    """Print nothing that libraries log by absl; errors still raise.

    Orbax warns about every checkpoint saved without a score, and prints lines for a damaged one beside the one of this
    package.
    """
    from absl import logging

    logging.set_verbosity(logging.FATAL)


def awcl() -> None:
    """Run `awcl COMMAND ...`, which is short for `python -m awcl_jax.COMMAND ...`."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in COMMANDS:
        sys.argv[:2] = [f"awcl {command}"]
        runpy.run_module(f"awcl_jax.{command}", run_name="__main__", alter_sys=True)
        return
    lines = [f"  {name:10} {purpose}" for name, purpose in COMMANDS.items()]
    usage = "\n".join(["usage: awcl COMMAND ...", "", *lines, "", "`awcl COMMAND --help` lists its options."])
    if command in ("", "-h", "--help"):
        print(usage)
        return
    _leave(f"error: awcl has no command {command!r}; it has {', '.join(COMMANDS)}", 1)


def _print(message: str) -> None:
    print(" ".join(message.splitlines()), file=sys.stderr, flush=True)


def _leave(message: str, status: int) -> NoReturn:
    _print(message)
    sys.exit(status)
