"""A digest of this package's sources, which differs between any two versions of them, released or not."""

import hashlib
from pathlib import Path

import awcl_jax


def source_digest() -> str:
    """Return the SHA-256 of the names and contents of all modules as they are on disk now, in hexadecimal."""
    digest = hashlib.sha256()
    root = Path(awcl_jax.__file__).parent
    # Editors leave links to nowhere beside an open file.
    for file in sorted(file for file in root.rglob("*.py") if file.is_file()):
        source = file.read_bytes()
        digest.update(f"{file.relative_to(root)} {len(source)}\n".encode() + source)
    return digest.hexdigest()
