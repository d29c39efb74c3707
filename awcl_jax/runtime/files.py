"""Files that appear only when complete, and locks on files and folders."""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a file beside `path` to write to; it replaces `path` if this block succeeds, and else is deleted.

    So a reader sees the old file or the new, never half of one. The name is unique to this call, because several
    processes may write the same file at once.
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
      wait: if another process holds it, wait until it is released.

    Raises:
      BlockingIOError: another process holds it, without `wait`.
      OSError: it does not exist, or its disk does not support locks.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)
