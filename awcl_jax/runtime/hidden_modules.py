"""Keep an imported library from importing others that it hardly uses."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def hidden(*modules: str) -> Iterator[None]:
    """Make these modules look not installed to imports in this block; modules imported earlier stay."""
    imported: dict[str, Any] = sys.modules
    absent = [name for name in modules if name not in imported]
    imported.update(dict.fromkeys(absent))  # import treats None as "not installed"
    try:
        yield
    finally:
        for name in absent:
            del imported[name]
