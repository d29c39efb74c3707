"""Names of the files in a folder of `awcl_jax.export`, and how to tell one; JAX is not imported."""

from pathlib import Path

DESCRIPTION = "preprocessing.json"
"""What an encoder expects; a run has no such file."""

FORMAT = 2
"""Of that description. Format 1 had neither a format nor an aspect: its frames are squashed."""

WEIGHTS = "encoder.safetensors"
FUNCTION = "encoder.jax"


def is_export(folder: Path) -> bool:
    """Return whether a folder is one of `awcl_jax.export`."""
    return (folder / DESCRIPTION).is_file()
