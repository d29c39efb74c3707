"""Keeps a library that is imported from importing others for next to nothing."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def hidden(*modules: str) -> Iterator[None]:
    """Let what is imported meanwhile find that these modules are not installed; those imported before stay."""
    imported: dict[str, Any] = sys.modules
    absent = [name for name in modules if name not in imported]
    imported.update(dict.fromkeys(absent))  # None, which import takes for "there is none"
    try:
        yield
    finally:
        for name in absent:
            del imported[name]
