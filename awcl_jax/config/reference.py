"""The reference of every configuration field, made from the source so that it is always up to date.

Defaults are read from `default_config()` and `default_downstream_config()`. Meanings are the comments beside the
assignments in the source of these two functions and, for `augment` and `model.vit`, the attributes in the docstrings of
`Augmentation` and `ViTOptions`.
"""

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from awcl_jax.augment.options import Augmentation
from awcl_jax.config.downstream import default_downstream_config
from awcl_jax.config.pretraining import default_config
from awcl_jax.models.vit import ViTOptions
from awcl_jax.train.run_folder import flattened

KINDS = ("pretraining", "downstream")
"""The two kinds of run; their fields differ."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a configuration.

    Attributes:
      name: as on the command line after `--config.`, for example `data.size`.
      default: its value in the default configuration; None if it is unset.
      meaning: what it does, in a few words.
    """

    name: str
    default: Any
    meaning: str

    @property
    def shown_default(self) -> str:
        """The default as a few characters: `()` for an empty list or a range that is off, `unset` for None."""
        return "unset" if self.default is None else _shown(self.default)


def describe_fields(kind: str) -> tuple[Field, ...]:
    """Return every field of a kind of run, in alphabetical order.

    Args:
      kind: one of KINDS.
    """
    pretraining = augmentation_meanings() | vit_meanings() | comments_of(default_config)
    if kind == "pretraining":
        return fields_of(default_config(), pretraining)
    assert kind == "downstream", kind
    # Fields of both kinds of run are described once, unless the downstream defaults override them.
    return fields_of(default_downstream_config(), pretraining | comments_of(default_downstream_config))


def fields_of(config: ConfigDict, meanings: Mapping[str, str]) -> tuple[Field, ...]:
    """Return the fields of a configuration with their meanings, all of which must be known."""
    fields = dict(flattened(config.to_dict()))
    missing = [name for name in fields if not meanings.get(name)]
    assert not missing, f"Fields without a meaning: {', '.join(missing)}. Write a comment beside their default."
    return tuple(Field(name, default, meanings[name]) for name, default in fields.items())


def comments_of(function: Callable[[], ConfigDict]) -> dict[str, str]:
    """Return the comments beside the assignments to `config.GROUP.NAME` in a function's source, by field.

    A comment counts if it begins on a line of the assignment, which may span several lines.
    """
    source = textwrap.dedent(inspect.getsource(function))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Assign) and (field := _field(node.targets[0]))):
            continue
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if text := " ".join(comments[line] for line in lines if line in comments):
            found[field] = text
    return found


def augmentation_meanings() -> dict[str, str]:
    """Return the attributes in the docstring of `Augmentation`, by field of a configuration.

    A probability has no entry there: the entry of its augmentation names it.
    """
    entries = _attributes(Augmentation)
    meanings = {f"augment.{name}": text for name, text in entries.items()}
    for name, text in entries.items():
        for probability in re.findall(r"`(\w+_probability)`", text):
            meanings[f"augment.{probability}"] = f"probability of augment.{name}; 0 turns it off"
    return meanings


def vit_meanings() -> dict[str, str]:
    """Return the attributes in the docstring of `ViTOptions`, by field of a configuration."""
    return {f"model.vit.{name}": text for name, text in _attributes(ViTOptions).items()}


def _attributes(described: type) -> dict[str, str]:
    """Return the attributes in the docstring of a class, each in one line."""
    _, _, attributes = inspect.cleandoc(described.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def fields_text() -> str:
    """Return all fields of both kinds of run as text for a terminal, 110 columns wide."""
    return "\n\n".join("\n".join(_text_lines(kind)) for kind in KINDS)


def fields_markdown(kind: str) -> str:
    """Return the fields of a kind of run as Markdown: a heading and a table for each group."""
    groups: dict[str, list[Field]] = {}
    for field in describe_fields(kind):
        groups.setdefault(field.name.rpartition(".")[0], []).append(field)
    parts = []
    for group, fields in sorted(groups.items()):
        rows = "\n".join(f"| `{field.name}` | `{field.shown_default}` | {_cell(field.meaning)} |" for field in fields)
        parts.append(f"### {kind}: {group or 'the run'}\n\n| field | default | meaning |\n|---|---|---|\n{rows}")
    return "\n\n".join(parts)


def _text_lines(kind: str) -> Iterator[str]:
    fields = describe_fields(kind)
    width = max(len(field.name) for field in fields)
    default_width = max(len(field.shown_default) for field in fields)
    yield f"Fields of a {kind} run (--config.FIELD=VALUE), defaults, meanings:"
    for field in fields:
        first = f"  {field.name:<{width}}  {field.shown_default:<{default_width}}  "
        yield textwrap.fill(
            field.meaning,
            width=110,
            initial_indent=first,
            subsequent_indent=" " * len(first),
            break_on_hyphens=False,
        )


def _field(target: ast.expr) -> str:
    """Return `group.name` of an assignment to `config.group.name`; "" for any other target."""
    path = ast.unparse(target)
    return path.removeprefix("config.") if path.startswith("config.") else ""


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_shown, value))})"
    if isinstance(value, float):
        return repr(float(f"{value:.4g}"))
    return str(value) if value != "" else '""'


def _cell(text: str) -> str:
    return (text[:1].upper() + text[1:]).rstrip(".").replace("|", "\\|")
