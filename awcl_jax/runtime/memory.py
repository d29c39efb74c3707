"""How a process holds the memory of its host."""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

# Of glibc: in the environment -> in malloc.h, and what it is set to.
_OPTIONS = {
    "MALLOC_ARENA_MAX": (-8, 1),  # one arena for all threads: others return what is large
    "MALLOC_MMAP_MAX_": (-4, 0),  # nothing beside the arena
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),  # an arena that only grows
}
ENVIRONMENT = {name: str(value) for name, (_, value) in _OPTIONS.items()}
"""Makes a process that is started with it keep its pages from the beginning."""


def keep_freed_pages() -> None:
    """Let the C library keep what it frees for what it allocates next, where that library is glibc.

    XLA allocates what a step needs on a CPU anew for every step, and glibc returns so large a block to the system at
    once: a step of ResNet-18 at 112 pixels begins with 155,000 page faults then, which is a seventh of its time. The
    price is that a process stays as large as it once was, and somewhat larger since parts of it cannot be joined.

    To be called before anything starts a thread, NumPy among them: threads have arenas of their own otherwise.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        for option, value in _OPTIONS.values():
            library.mallopt(option, value)


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Look for no garbage meanwhile: for work that makes many objects to be kept, as JAX does when it traces a step."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
