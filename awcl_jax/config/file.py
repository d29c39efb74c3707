"""Configurations by name and from files: Python, which is executed, or JSON, which is only read.

Shipped ones have names, such as `fine` or `fine:tiny`, which work in any folder. A JSON file has fields by group, such
as `{"granularity": "coarse", "train": {"steps": 500}}`; the others keep their defaults. The `config.json` in a run
folder is also such a file, and repeats the run.
"""

import difflib
import json
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from awcl_jax.runtime.errors import InputError

# --config belongs to the program that defines it, whose --help shows it.
flags.disclaim_key_flags()

_HELP = (
    "Configuration: the name of a shipped one, NAME[:VARIANT] (fine, coarse, scan, simclr, moco, downstream_planes, "
    "downstream_segmentation); a Python file, FILE.py[:VARIANT], which is executed, so use only one that you trust; or "
    "FILE.json, which is only read and needs no trust, for example the config.json of a run."
)
# In an installed package, and beside the package in a clone.
_PACKAGE = Path(__file__).parents[1]
_SHIPPED = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


class _Parser(flags.ArgumentParser):
    """Reads the value of `--config`.

    Args:
      python: reads a Python file.
    """

    def __init__(self, python: flags.ArgumentParser) -> None:
        self._python = python

    def parse(self, path: str) -> ConfigDict:
        """Read a configuration; the ending of its name selects the format.

        Raises:
          InputError: its name is neither of Python nor of JSON, it does not exist, or it returns no configuration.
          OSError: a JSON file cannot be read.
        """
        if path.lower().endswith(".json"):
            return read_config(Path(path))
        # What is not JSON would be executed, so only files named as Python are accepted.
        file, colon, variant = path.partition(":")
        if file.lower().endswith(".json"):
            raise InputError(f"a JSON file cannot have a variant; got {colon + variant!r} after its name")
        if file.isidentifier():
            file = str(shipped_file(file))
        if not file.endswith(".py"):
            raise InputError(
                "a configuration must be the name of a shipped one, NAME[:VARIANT], a Python file, FILE.py[:VARIANT], "
                "or FILE.json"
            )
        if not Path(file).is_file():
            near = difflib.get_close_matches(Path(file).stem, shipped_names(), n=1)
            hint = f"; the shipped configuration is --config={near[0]}" if near else ""
            raise InputError(f"{file} does not exist{hint}")
        try:
            config = self._python.parse(file + colon + variant)
        except (Exception, SystemExit) as error:  # whatever the file raises
            raise InputError(_failure_of(error, file)) from None
        if not isinstance(config, ConfigDict):  # or what ml_collections returns if it could not read a file
            raise InputError("its get_config() must return a ConfigDict; begin with awcl_jax.config.default_config()")
        return config


def _failure_of(error: BaseException, file: str) -> str:
    """Return in one line why a configuration's file failed; ml_collections puts the whole traceback in its message."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    first = causes[-1]
    if isinstance(first, InputError):
        return str(first)
    last = f"{type(first).__name__}: {(str(first).splitlines() or [''])[0][:500]}"
    lines = [frame.lineno for frame in traceback.extract_tb(first.__traceback__) if frame.filename == file]
    where = f"{file}, line {lines[-1]}," if lines else file
    return f"{where} fails: {last}"


def shipped_names() -> tuple[str, ...]:
    """Return the names of the configurations that come with the package."""
    return tuple(sorted(file.stem for file in _shipped_folder().glob("[!_]*.py")))


def shipped_file(name: str) -> Path:
    """Return the file of a configuration that comes with the package.

    Raises:
      InputError: no configuration has this name.
    """
    if name not in shipped_names():
        raise InputError(f"{name!r} is not a shipped configuration; choose from {', '.join(shipped_names())}")
    return _shipped_folder() / f"{name}.py"


def shipped_config(name: str, variant: str | None = None) -> ConfigDict:
    """Return a configuration that comes with the package.

    Args:
      name: such as `fine`.
      variant: such as `tiny`; None for the phantom.
    """
    return runpy.run_path(str(shipped_file(name)))["get_config"](variant)


def _shipped_folder() -> Path:
    return next(folder for folder in _SHIPPED if (folder / "fine.py").is_file())


def define_config(values: flags.FlagValues = flags.FLAGS, *, sys_argv: list[str] | None = None) -> flags.FlagHolder:
    """Define the flag `--config`, with `--config.FIELD=VALUE` for each field of the configuration it names.

    Args:
      values: flags that it is added to.
      sys_argv: arguments to look for fields in; by default the program's.
    """
    holder = config_flags.DEFINE_config_file("config", None, _HELP, flag_values=values, sys_argv=sys_argv)
    values["config"].parser = _Parser(values["config"].parser)
    return holder


def read_config(path: Path) -> ConfigDict:
    """Read a configuration from JSON, of pretraining or, if it has a `task`, of a downstream run.

    Raises:
      InputError: it is not a JSON object of fields, or fields are unknown or of another type; all are listed.
      OSError: it cannot be read.
    """
    # Imported here, so that --help does not wait for JAX.
    from awcl_jax.config.downstream import default_downstream_config
    from awcl_jax.config.fields import from_dict
    from awcl_jax.config.pretraining import default_config

    try:
        values: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error})") from None
    # The config.json of a run holds more: the data's fingerprint, and what the datasets say about themselves.
    if isinstance(values, dict) and isinstance(values.get("config"), dict) and isinstance(values.get("data"), str):
        values = values["config"]
    if not isinstance(values, dict):
        raise InputError(f"{path} must be a JSON object of fields; got {type(values).__name__}")
    config = from_dict(values, default_downstream_config() if "task" in values else default_config())
    config.lock()
    return config


def parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Read flags; return the arguments that are not flags.

    Raises:
      InputError: in one line, where absl would print many for a misspelt field, or a traceback.
      OSError: a JSON file cannot be read.
      SystemExit: with status 0 after --help, where absl exits with 1.
    """
    try:
        return list(values(argv))
    except SystemExit:
        sys.exit(0)
    except InputError:
        raise
    except (ValueError, TypeError, IndexError) as error:
        # ml_collections raises these for an invalid field name.
        raise InputError(f"Set a field with --config.GROUP.FIELD=VALUE ({_one_line(str(error))}).") from None
    except (AttributeError, KeyError) as error:
        # ml_collections wraps the name and, if any, the nearest one in one to three exceptions.
        reason: object = error
        while isinstance(reason, Exception):
            reason = reason.args[0]
        said = _one_line(str(reason)).replace("' Did you mean", "'. Did you mean")
        raise InputError(f"The configuration has no field {said}") from None
    except flags.Error as error:
        raise InputError(_in_words(_one_line(str(error).strip()))) from None


_KINDS = {
    "invalid literal for int()": "a whole number",
    "could not convert string to float": "a number",
    "('Non-boolean argument": "true or false",
}
"""What Python or absl says of a value of the wrong kind -> the right kind."""


def _in_words(said: str) -> str:
    """Return what absl says of a flag, with the kind of value that it needs."""
    flag, _, why = said.partition(": ")
    return next((f"{flag}: must be {kind}" for begin, kind in _KINDS.items() if why.startswith(begin)), said)


def _one_line(text: str) -> str:
    return " ".join(text.strip('"').splitlines())
