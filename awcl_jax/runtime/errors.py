"""The exceptions that users see, and how they quote other libraries' errors."""


class InputError(ValueError):
    """Invalid input from the user.

    The message is one line: the rule, the offending value and the fix. Commands print it alone, without a traceback,
    and exit with status 1 (see `awcl_jax.runtime.cli`). It may quote untrusted text: line breaks become spaces, and
    other characters that do not print are escaped, because a terminal would obey them.
    """

    def __init__(self, message: object) -> None:
        line = " ".join(str(message).splitlines())
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


class RunStopped(KeyboardInterrupt):
    """A run was asked to stop and has saved a checkpoint; the same command resumes from it."""


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error, or its type if it has no text, to quote in a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def of_device_memory(error: BaseException) -> bool:
    """Return whether XLA says by it that the memory of a device is full."""
    return isinstance(error, RuntimeError) and str(error).startswith("RESOURCE_EXHAUSTED")


def in_words(error: Exception) -> str:
    """Return an error as one line; of an `OSError` the reason, then the file: `No space left on device: /data/out`."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
