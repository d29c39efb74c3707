"""A digest of this package's sources, which differs between any two versions of them, released or not."""

import hashlib
from pathlib import Path
from types import ModuleType

import awcl_jax


def source_digest(*modules: ModuleType) -> str:
    """Return the SHA-256 of the names and contents of sources as they are on disk now, in hexadecimal.

    Args:
      modules: of this package; all of its modules if there are none.
    """
    digest = hashlib.sha256()
    root = Path(awcl_jax.__file__).parent
    files = [Path(str(module.__file__)) for module in modules] or root.rglob("*.py")
    # Editors leave links to nowhere beside an open file.
    for file in sorted(file for file in files if file.is_file()):
        source = file.read_bytes()
        digest.update(f"{file.relative_to(root)} {len(source)}\n".encode() + source)
    return digest.hexdigest()
