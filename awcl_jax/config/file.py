"""Configurations by name and from files: Python, which is executed, or JSON, which is only read.

The shipped ones have names, `fine` or `fine:tiny`, which work in any folder. A JSON file holds fields by group, as
`{"granularity": "coarse", "train": {"steps": 500}}`; the others keep their defaults. The `config.json` in a run's
folder is such a file, too, and makes the same run again.
"""

import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from awcl_jax.runtime.errors import InputError

# --config is a flag of the program that asks for it, and is told by its --help.
flags.disclaim_key_flags()

_HELP = (
    "Configuration: the name of a shipped one, NAME[:VARIANT] (fine, coarse, scan, simclr, moco, downstream_planes, "
    "downstream_segmentation); a Python file, FILE.py[:VARIANT], which is executed, so use only one that you trust; or "
    "FILE.json, which is only read and may be a stranger's, for example the config.json of a run."
)
# In an installed package, and in a clone, where they are beside it.
_PACKAGE = Path(__file__).parents[1]
_SHIPPED = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
_RUN = {"config", "data", "pixels"}  # in the config.json of a run: its configuration, and the data's fingerprints


class _Parser(flags.ArgumentParser):
    """Reads what `--config` names.

    Args:
      python: reads a Python file.
    """

    def __init__(self, python: flags.ArgumentParser) -> None:
        self._python = python

    def parse(self, path: str) -> ConfigDict:
        """The configuration in a file, by the end of its name.

        Raises:
          InputError: it is neither Python nor JSON by its name, is not there, or gives no configuration.
          OSError: a JSON file cannot be read.
        """
        if path.lower().endswith(".json"):
            return read_config(Path(path))
        # Whatever is no JSON would be executed: nothing is that does not call itself Python.
        file, colon, variant = path.partition(":")
        if file.lower().endswith(".json"):
            raise InputError(f"a JSON file has no variants; got {colon + variant!r} after its name")
        if file.isidentifier():
            file = str(shipped_file(file))
        if not file.endswith(".py"):
            raise InputError(
                "a configuration is the name of a shipped one, NAME[:VARIANT], a Python file, NAME.py[:VARIANT], or "
                "FILE.json"
            )
        if not Path(file).is_file():
            name = Path(file).stem
            hint = f"; the shipped configuration is --config={name}" if name in shipped_names() else ""
            raise InputError(f"there is no file {file}{hint}")
        config = self._python.parse(file + colon + variant)
        if not isinstance(config, ConfigDict):  # or what ml_collections has for one that could not read a file
            raise InputError("its get_config() gives no ConfigDict: begin with awcl_jax.config.default_config()")
        return config


def shipped_names() -> tuple[str, ...]:
    """Return the names of the configurations that come with the package."""
    return tuple(sorted(file.stem for file in _shipped_folder().glob("[!_]*.py")))


def shipped_file(name: str) -> Path:
    """Return the file of a configuration that comes with the package.

    Raises:
      InputError: no configuration has this name.
    """
    if name not in shipped_names():
        raise InputError(f"{name!r} is not a shipped configuration; these are: {', '.join(shipped_names())}")
    return _shipped_folder() / f"{name}.py"


def shipped_config(name: str, variant: str | None = None) -> ConfigDict:
    """Return a configuration that comes with the package.

    Args:
      name: as `fine`.
      variant: as `tiny`; none for the phantom's.
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
    """The configuration in a JSON file, of pretraining or, where it has a `task`, of a downstream run.

    Raises:
      InputError: it is no JSON object of fields; each that is unknown or of another kind is named.
      OSError: it cannot be read.
    """
    # Imported here, so that --help does not wait for JAX.
    from awcl_jax.config.downstream import default_downstream_config
    from awcl_jax.config.fields import from_dict
    from awcl_jax.config.pretraining import default_config

    try:
        values: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error})") from None
    if isinstance(values, dict) and values.keys() <= _RUN and isinstance(values.get("config"), dict):
        values = values["config"]
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no JSON object of fields")
    config = from_dict(values, default_downstream_config() if "task" in values else default_config())
    config.lock()
    return config


def parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Read flags; what is not a flag is given back.

    Raises:
      InputError: in one line, where absl would have many for a slip in a field, or a traceback.
      OSError: a JSON file cannot be read.
      SystemExit: with absl's status, after --help.
    """
    try:
        return list(values(argv))
    except InputError:
        raise
    except (ValueError, TypeError, IndexError) as error:
        # What ml_collections makes of a field's name that is no name.
        raise InputError(f"A field is set by --config.GROUP.FIELD=VALUE ({_one_line(str(error))}).") from None
    except (AttributeError, KeyError) as error:
        # ml_collections wraps the name and, where there is any, the nearest one in one to three exceptions.
        said: object = error
        while isinstance(said, Exception):
            said = said.args[0]
        raise InputError(f"The configuration has no field {_one_line(str(said))}") from None
    except flags.Error as error:
        # Of an error within the configuration's file this is the traceback, as text.
        said = str(error).strip()
        if "Traceback (most recent call last):" in said:
            said = said.splitlines()[-1].partition(": ")[2]
        raise InputError(_one_line(said)) from None


def _one_line(text: str) -> str:
    return " ".join(text.strip('"').splitlines())
