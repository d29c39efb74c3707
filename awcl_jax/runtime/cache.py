"""The cache folder, for what can be made again: the phantom, compiled programs."""

import os
import warnings
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return a folder of this package under the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "awcl_jax" / name


def keep_compiled_programs() -> None:
    """Cache what JAX compiles for the next start; `$JAX_COMPILATION_CACHE_DIR` overrides the folder."""
    # Imported here, so that --help does not wait for JAX.
    import jax

    # Programs with large convolutions cannot be cached (see `models.convolution`), not worth a warning each time.
    warnings.filterwarnings("ignore", message="Error writing persistent compilation cache entry.*MemoryError")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("compiled")))
