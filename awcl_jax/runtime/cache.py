"""The cache folder, for what can be made again: the phantom, compiled programs."""

import os
from pathlib import Path

from awcl_jax.runtime.errors import InputError


def cache_folder(name: str) -> Path:
    """Return a folder of this package under the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`).

    Raises:
      InputError: there is neither, as in a container whose user has no name.
    """
    root = _root()
    if root is None:
        raise InputError(
            f"There is no folder for the cache of {name}: this user has no home folder. Set XDG_CACHE_HOME to a folder "
            "that can be written to."
        )
    return root / "awcl_jax" / name


def _root() -> Path | None:
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def keep_compiled_programs() -> None:
    """Cache what JAX compiles for the next start; `$JAX_COMPILATION_CACHE_DIR` overrides the folder.

    Without a home folder nothing is cached.
    """
    # Imported here, so that --help does not wait for JAX.
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and _root() is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("compiled")))
