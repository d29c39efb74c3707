"""The exceptions that are meant for the user's eyes, and what they quote of others."""


class InputError(ValueError):
    """Something the user gave cannot work.

    The message is one line: the rule, the offending value and the remedy. Commands print it alone, without a traceback,
    and exit with status 1 (see `awcl_jax.runtime.cli`). What it quotes may be a stranger's: line breaks in it become
    blanks, and other characters that do not print are escaped, because a terminal would obey them.
    """

    def __init__(self, message: object) -> None:
        line = " ".join(str(message).splitlines())
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


class RunStopped(KeyboardInterrupt):
    """A run was asked to stop and has saved what it learnt: started again, it goes on from there."""


def first_line(error: BaseException) -> str:
    """What a library's error says, for a message of ours: its first line, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
