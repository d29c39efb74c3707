"""Allocate and free host memory faster."""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

# glibc's options: name in the environment -> number in malloc.h, and value.
_OPTIONS = {
    "MALLOC_ARENA_MAX": (-8, 1),  # one arena for all threads: others return large blocks
    "MALLOC_MMAP_MAX_": (-4, 0),  # no block outside the arena
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),  # an arena that only grows
}
ENVIRONMENT = {name: str(value) for name, (_, value) in _OPTIONS.items()}
"""Start a process with these variables and it keeps its pages from the beginning."""


def return_freed_pages() -> None:
    """Return all free pages to the system now, if the C library is glibc: after work that is not repeated.

    So what compiling has left does not stay with a process that otherwise keeps its pages.
    """
    library = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def keep_freed_pages() -> None:
    """Make the C library reuse freed memory for the next allocation, if that library is glibc.

    On a CPU, XLA allocates the memory of every step anew, and glibc returns such large blocks to the system at once: a
    step of ResNet-18 at 112 pixels then begins with 155,000 page faults, a seventh of its time. The price: a process
    never shrinks, and grows somewhat larger because free blocks that are apart cannot be joined.

    Call it before anything starts a thread, NumPy included: otherwise threads get separate arenas.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        for option, value in _OPTIONS.values():
            library.mallopt(option, value)


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Pause garbage collection in this block, for work that makes many lasting objects, as when JAX traces a step."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
