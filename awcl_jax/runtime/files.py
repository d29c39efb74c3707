"""Files that are there when they are whole, and folders that one process at a time works in."""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A file beside `path` to write into, which takes its place where this block ends well, and else is deleted.

    So a reader sees the old file or the new, never half of one. The name is this call's own, since several processes
    may write the same file at once.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a folder or a file for this process; the system releases it even when the process is killed.

    Args:
      path: on a disk of this host.
      wait: if another process holds it, wait for that.

    Raises:
      BlockingIOError: another process holds it, without `wait`.
      OSError: it is not there, or its disk knows no locks.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)
