"""A digest of this package's sources, which differs between any two versions of them, released or not."""

import hashlib
from pathlib import Path

import awcl_jax


def source_digest() -> str:
    """Return the SHA-256 of the names and contents of all modules as they are on disk now, in hexadecimal."""
    digest = hashlib.sha256()
    root = Path(awcl_jax.__file__).parent
    for file in sorted(root.rglob("*.py")):
        source = file.read_bytes()
        digest.update(f"{file.relative_to(root)} {len(source)}\n".encode() + source)
    return digest.hexdigest()
