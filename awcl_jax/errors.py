"""The one exception that is meant for the user's eyes."""


class InputError(ValueError):
    """Something the user gave cannot work.

    The message is one line: the rule, the offending value and the remedy. Commands print it alone, without a traceback,
    and exit with status 1 (see `awcl_jax.cli`).
    """
