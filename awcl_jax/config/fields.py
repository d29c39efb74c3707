"""The fields of a configuration: their types and names, and conversion to plain values and back."""

import dataclasses
import difflib
import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from awcl_jax.augment.options import Augmentation
from awcl_jax.models.vit import ViTOptions
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.run_folder import REMOVED, flattened

# Fields that may differ between the hosts of a run.
HOST_FIELDS = ("data.path", "data.unlabelled", "data.cache_mb", "data.disk_cache_gb", "data.threads")


def refuse(problems: Iterable[str]) -> None:
    """Raise an InputError with these problems, in one line, if there are any."""
    if found := list(problems):
        raise InputError("; ".join(found))


def wrong_types(config: ConfigDict, default: ConfigDict, place: str = "config") -> Iterator[str]:
    """Yield a sentence for each field that one configuration lacks, or whose value is of another kind.

    `ConfigDict` accepts None for any value, and any list for another.

    Args:
      config: as `default`, with changes.
      default: has all fields, with values of the right kind.
      place: path of both, for messages.
    """
    for name in sorted({*config.keys()} - {*default.keys()}):
        yield _no_field(name, default, place)
    for name, wanted in default.items():
        if name not in config:
            yield f"{place}.{name} is missing"
        elif isinstance(wanted, ConfigDict) and isinstance(config[name], ConfigDict):
            yield from wrong_types(config[name], wanted, f"{place}.{name}")
        elif not _fits(config[name], default, name):
            yield f"{place}.{name} must be {_kind(default, name)}; got {shown(config[name])}"


def augmentation_fields(options: Augmentation) -> ConfigDict:
    """Return an augmentation as part of a configuration; () means that a range is off."""
    return ConfigDict({name: () if value is None else value for name, value in vars(options).items()})


def vit_fields(options: ViTOptions) -> ConfigDict:
    """Return options of a vision transformer as part of a configuration."""
    return ConfigDict(dataclasses.asdict(options))


def augmentation(config: ConfigDict) -> Augmentation:
    """Return the `augment` part of a configuration as an `Augmentation`."""
    fields: dict[str, Any] = {name: None if value == () else value for name, value in config.augment.to_dict().items()}
    return Augmentation(**fields)


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Return the configuration as plain values, as JSON returns them."""
    return json.loads(json.dumps(config.to_dict()))


def from_dict(values: Mapping[str, Any], default: ConfigDict) -> ConfigDict:
    """Return the configuration of these plain values from `to_dict`; a missing field keeps its default.

    Fields that this version has removed are left out.

    Args:
      values: fields by group, with plain values as in JSON.
      default: the defaults of this kind of run, with all fields; it is changed.

    Raises:
      InputError: fields are unknown in this version, or of another kind; lists all such fields.
    """
    refuse(_lay_over(default, values, "config"))
    return default


def _lay_over(config: ConfigDict, values: Mapping[str, Any], place: str) -> Iterator[str]:
    """Set what fits, and yield a sentence for each field that does not."""
    for name, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        if f"{place}.{name}".removeprefix("config.") in REMOVED:
            continue
        if name not in config:
            yield _no_field(name, config, place)
        elif isinstance(config[name], ConfigDict) and isinstance(value, dict):
            yield from _lay_over(config[name], value, f"{place}.{name}")
        elif not _fits(value, config, name):
            yield f"{place}.{name} must be {_kind(config, name)}; got {shown(value)}"
        else:
            config[name] = value


_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a line of text",
    tuple: "a list of numbers or of lines of text",
    ConfigDict: "a group of fields",
}


def _kind(default: ConfigDict, name: str) -> str:
    return _KINDS[default.get_type(name)] + (" or None" if default[name] is None else "")


def _fits(value: Any, default: ConfigDict, name: str) -> bool:
    """Return whether a value is of this field's kind. None is allowed only where it is the default."""
    wanted = default.get_type(name)
    if value is None:
        return default[name] is None
    if wanted is int:
        return is_number(value) and isinstance(value, int)
    if wanted is float:
        return is_number(value)
    if wanted is str:
        return _is_line(value)
    if wanted is tuple:
        return isinstance(value, tuple | list) and (all(map(_is_line, value)) or all(map(is_number, value)))
    return isinstance(value, wanted)


def is_number(value: Any) -> bool:
    # True and False are whole numbers in Python. Other rules reject NaN.
    most = 2**53 if isinstance(value, int) else 1e38  # limits of a float64's whole numbers, and of a float32
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > most


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _no_field(name: str, default: ConfigDict, place: str) -> str:
    near = difflib.get_close_matches(str(name), default.keys(), n=1)
    hint = f"did you mean {place}.{near[0]}?" if near else f"its fields are {', '.join(default.keys())}"
    return f"{place} has no field {shown(name)}: {hint}"


def shown(value: Any) -> str:
    """Return a value in a few characters, on one line."""
    return reprlib.repr(value)


def common_fields(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that all processes of a run share, by names like `config.data.size`."""
    return {f"config.{field}": value for field, value in flattened(to_dict(config)) if field not in HOST_FIELDS}
