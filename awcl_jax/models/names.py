"""Networks among the arrays of a file, recognised by their names and renamed."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from awcl_jax.runtime.errors import InputError

_AVERAGE = re.compile(r"(^|[._])(k|momentum|target|ema|student)([._]|$)")  # in the prefix of the other of two networks
_DEEPEST = 4  # dictionaries within each other in a file


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a library names its networks of a kind.

    Attributes:
      title: the library, for messages.
      first: name of the first layer's kernel.
      block: pattern of a name in a block.
      rules: patterns and what they become, applied in order, from its names to timm's.
      left_out: pattern of names that features do not need.
    """

    title: str
    first: str
    block: str
    rules: tuple[tuple[str, str], ...] = ()
    left_out: str = "(?!)"


AnyLayout = TypeVar("AnyLayout", bound=Layout)


def flattened(content: Mapping[Any, Any], place: str = "", depth: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and array of every array in dictionaries within each other."""
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            yield f"{place}{name}", value
        elif isinstance(value, dict) and depth < _DEEPEST:
            yield from flattened(value, f"{place}{name}.", depth + 1)


def networks_by_prefix(arrays: Mapping[str, np.ndarray], layouts: Sequence[AnyLayout]) -> dict[str, AnyLayout]:
    """Return the networks of these layouts: what their names begin with -> the layout.

    Of a network and its moving average only the network is returned, and of a student and its teacher the teacher.
    """
    found = [
        (prefix, layout)
        for layout in layouts
        for prefix in _prefixes(arrays, layout)
        if any(re.fullmatch(re.escape(prefix) + layout.block, name) for name in arrays)
    ]
    # The names of a layout may be among those of a later one: one network may be found twice.
    networks = dict(reversed(found))
    if len(networks) > 1 and len(used := [prefix for prefix in networks if not _AVERAGE.search(prefix)]) == 1:
        networks = {used[0]: networks[used[0]]}
    return networks


def require_one(networks: Mapping[str, AnyLayout], path: object) -> tuple[str, AnyLayout]:
    """Return prefix and layout of the only network.

    Raises:
      InputError: there are several.
    """
    if len(networks) > 1:
        listed = ", ".join(f"{prefix!r} ({layout.title})" for prefix, layout in networks.items())
        raise InputError(f"{path} has {len(networks)} networks, under {listed}. Save only the one you need.")
    ((prefix, layout),) = networks.items()
    return prefix, layout


def renamed(
    arrays: Mapping[str, np.ndarray], prefix: str, layout: Layout
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Return a network's arrays by timm's names, timm's name -> the file's, and the file's names that are not used."""
    named: dict[str, np.ndarray] = {}
    original: dict[str, str] = {}
    left_out = []
    for full, array in arrays.items():
        name = full.removeprefix(prefix)
        if not full.startswith(prefix) or re.fullmatch(layout.left_out, name):
            left_out.append(full)
            continue
        for pattern, becomes in layout.rules:
            name = re.sub(pattern, becomes, name)
        if name in named:  # two names of one array: the second is unknown
            name = f"again {full}"
        named[name], original[name] = array, full
    return named, original, left_out


def grouped(names: Iterable[str]) -> str:
    """Return names in a few words: those that begin alike as one, with their number."""
    counts: dict[str, int] = {}
    for name in names:
        begin, _, rest = name.partition(".")
        key = f"{begin.split('_')[0]}_*" if begin.startswith("decoder_") else f"{begin}.*" if rest else begin
        counts[key] = counts.get(key, 0) + 1
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts.items())


def _prefixes(arrays: Mapping[str, np.ndarray], layout: Layout) -> list[str]:
    ends = [name.removesuffix(layout.first) for name in arrays if name.endswith(layout.first)]
    return [prefix for prefix in ends if prefix == "" or prefix.endswith(".")]
