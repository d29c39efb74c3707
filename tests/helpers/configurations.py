"""Configurations made from files, command lines and tests."""

import importlib.util
from pathlib import Path

from absl import flags

from awcl_jax.config.file import define_config
from configs import fine

CONFIGS = Path(__file__).parents[2] / "configs"


def load(file: Path, *variant: str):
    spec = importlib.util.spec_from_file_location(f"configs.{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


def command_line(*arguments: str):
    """Return the configuration that these arguments make."""
    values, argv = flags.FlagValues(), ["awcl_jax.main", *arguments]
    config = define_config(values, sys_argv=argv)
    values(argv)
    return config.value


def tiny(phantom: Path, method=fine, **fields):
    """Return the configuration of a run of seconds on the tiny phantom."""
    config = method.get_config("tiny")
    config.data.path = str(phantom)
    config.report.pictures = False
    config.update_from_flattened_dict(fields)
    return config
