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
_BESIDE = 96 << 20  # bytes beside a reserved block
_keeps_pages = False
ENVIRONMENT = {name: str(value) for name, (_, value) in _OPTIONS.items()}
"""Start a process with these variables and it keeps its pages from the beginning."""


def free_before_the_next() -> None:
    """Make JAX return from a program on a CPU only when its memory is freed; call it before JAX finds its devices.

    Otherwise results are ready a moment before the program's own memory is freed. On a busy machine the next step is
    then sometimes faster, and the process grows by the memory of a second one, for good if it keeps its pages.
    """
    # Imported here, because keep_freed_pages comes before everything that starts threads.
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def reserve(size: int) -> None:
    """Make room for a block that is allocated and freed again and again, in a process that keeps its pages.

    Else small blocks that last are put where the freed block was, which is then too small for the next one, and the
    process grows by its whole size. With some space beside it they are put there instead, because glibc takes the
    smallest free space that fits.

    Args:
      size: bytes of the block. What is reserved takes no memory until it is used.
    """
    if sys.platform != "linux" or not _keeps_pages:
        return
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    # The second block lasts, and keeps the space of the first apart from the end of the heap.
    space, end = library.malloc(size + _BESIDE), library.malloc(2**16)
    if space and end:
        library.free(space)


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
        global _keeps_pages
        _keeps_pages = True


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
