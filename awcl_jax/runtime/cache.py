"""Where this package keeps what it can make again: the phantom, compiled programs."""

import os
import warnings
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of this package under the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "awcl_jax" / name


def keep_compiled_programs() -> None:
    """Keep what JAX compiles for the next start, unless the user says where (`$JAX_COMPILATION_CACHE_DIR`)."""
    # Imported here, so that --help does not wait for JAX.
    import jax

    # Programs with large convolutions cannot be kept (see `models.convolution`), which is nothing to warn of each time.
    warnings.filterwarnings("ignore", message="Error writing persistent compilation cache entry.*MemoryError")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("compiled")))
