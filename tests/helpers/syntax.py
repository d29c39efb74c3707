"""The package's own code as syntax trees."""

import ast
import functools
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "awcl_jax"
FILES = tuple(sorted(PACKAGE.rglob("*.py")))


@functools.cache
def tree_of(file: Path) -> ast.Module:
    """Parse a file, once."""
    return ast.parse(file.read_text())
