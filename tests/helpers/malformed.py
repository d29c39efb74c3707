"""Malformed input in numbers: values that no field expects, trees with one of them in each place, and broken bytes."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from awcl_jax.runtime.errors import InputError

VALUES = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**53 + 1, -(2**63), 10**400),
    *(0.5, -0.5, 1e-320, 1e308, math.nan, math.inf, -math.inf),
    *("", "x", "../x", "/", "a\nb", "\0", "\u2028", "\ud800", "1", "nan", "[]", "$(x)", "x" * 5_000),
    *([], [None], [1, 2], [0.5, 0.9], ["x"], ["a\nb"], [[]], [1, "x"]),
    *({}, {"x": 1}, {"": {}}),
)
"""Values for a field, of every kind in JSON and a few more."""


def paths(tree: Any, prefix: tuple = ()) -> Iterator[tuple]:
    """Yield the place of everything in a tree of dicts and lists, groups among them."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inside:
        yield (*prefix, key)
        yield from paths(value, (*prefix, key))


def replaced(tree: Any, path: tuple, value: Any) -> Any:
    """Return the tree with another value in this place."""
    tree = copy.deepcopy(tree)
    at = tree
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return tree


def without(tree: Any, path: tuple) -> Any:
    """Return the tree without what is in this place."""
    tree = copy.deepcopy(tree)
    at = tree
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return tree


def broken_trees(tree: Any, values: tuple = VALUES) -> Iterator[tuple[str, Any]]:
    """(kind, tree) for each place and value, and for each place left out."""
    for path in paths(tree):
        yield f"{path} left out", without(tree, path)
        for value in values:
            yield f"{path} = {value!r:.40}", replaced(tree, path, value)


def broken_bytes(content: bytes) -> Iterator[tuple[str, bytes]]:
    """(kind, bytes): cut at some places, with a byte flipped at others, and replaced altogether."""
    yield from (("empty", b""), ("zeros", b"\0" * 64), ("no text", b"\xff\xfe\x80"), ("doubled", content * 2))
    yield from (("BOM", b"\xef\xbb\xbf" + content), ("nested", b"[" * 100_000), ("quoted", b'"' + content))
    for part in range(1, 8):
        at = len(content) * part // 8
        yield f"cut at {part}/8", content[:at]
        yield f"flipped at {part}/8", content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]
        yield f"line at {part}/8", content[:at] + b"\n" + content[at:]


def refuses(call: Callable[[], object]) -> bool:
    """Return whether a call reports bad input in one line; False if it works. Anything else is raised.

    An `OSError` counts as refused: commands tell it in one line, too.
    """
    said = "worked"
    try:
        call()
    except (InputError, OSError) as error:
        said = str(error)
    assert len(said.splitlines()) == 1, f"{said!r} is not one line"
    return said != "worked"


def files_in(folder: Path) -> dict[str, bytes]:
    """Return every file in a folder and below, with its bytes."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def refused_of(cases: Iterator[tuple[str, Any]], call: Callable[[Any], object]) -> set[str]:
    """Which kinds of malformed input a call refuses; a failure names its kind."""
    refused = set()
    for kind, given in cases:
        try:
            if refuses(lambda given=given: call(given)):
                refused.add(kind)
        except Exception as error:
            error.add_note(f"given {kind}")
            raise
    return refused


def sampled(cases: Iterator[tuple[str, Any]], every: int) -> Iterator[tuple[str, Any]]:
    """Yield every n-th case."""
    return itertools.islice(cases, 0, None, every)
