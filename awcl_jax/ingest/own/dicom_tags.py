"""Values of DICOM tags that may be read (see `privacy.READ_TAGS`), also in broken files."""

import math
from collections.abc import Container
from typing import TYPE_CHECKING, Any

from awcl_jax.ingest.own.items import BadFileError

if TYPE_CHECKING:
    from pydicom import Dataset


def value(tags: "Dataset", name: str) -> Any:
    """Return the value of a tag; None if it is absent or broken."""
    try:
        return tags.get(name)
    except Exception:  # pydicom converts values now, and raises many kinds
        return None


def number(tags: "Dataset", name: str, otherwise: float) -> float:
    """Return a number, the first of several; `otherwise` if there is none, or it is not finite."""
    found = value(tags, name)
    try:
        first = float(found if isinstance(found, (str, int, float)) else found[0])
    except (TypeError, ValueError, IndexError, OverflowError):
        return otherwise
    return first if math.isfinite(first) else otherwise


def whole(tags: "Dataset", name: str, known: Container[int], otherwise: int | None = None) -> int:
    """Return a whole number in `known`; `otherwise` if the tag is absent or empty.

    Raises:
      BadFileError: it is absent without `otherwise`, or not in `known`.
    """
    if not has_value(tags, name):
        if otherwise is None:
            raise BadFileError("bad_tag", f"{name} is missing")
        return otherwise
    try:
        read = int(value(tags, name))
    except (TypeError, ValueError, OverflowError):
        raise BadFileError("bad_tag", f"{name} is not a number") from None
    if read not in known:
        raise BadFileError("bad_tag", f"{name} has an unknown value")
    return read


def has_value(tags: "Dataset", name: str) -> bool:
    """Return whether a tag exists and is not empty, even if broken."""
    return name in tags and tags.get_item(name).value not in (None, "", b"")


def text(tags: "Dataset", name: str) -> str:
    """Return a text without blanks at its ends; empty if there is none."""
    found = value(tags, name)
    return found.strip() if isinstance(found, str) else ""


def items(tags: "Dataset", name: str) -> "list[Dataset]":
    """Return the items of a sequence; empty if there is none."""
    found = value(tags, name)
    try:
        return list(found or ())
    except TypeError:
        return []


def shared(tags: "Dataset", macro: str, name: str) -> "Dataset":
    """Return the place of a tag: for enhanced objects a macro that all frames share, else the file itself."""
    for group in items(tags, "SharedFunctionalGroupsSequence"):
        for found in items(group, macro):
            if has_value(found, name):
                return found
    return tags
