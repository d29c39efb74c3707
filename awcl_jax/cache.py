"""Where this package keeps what it can make again: the phantom, compiled programs."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of this package under the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "awcl_jax" / name
