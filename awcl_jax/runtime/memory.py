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
_BESIDE = 96 << 20  # most bytes of space for other blocks than a reserved one
_ALIGNMENT = 64  # of XLA's blocks
_TO_ALIGN = 2 * _ALIGNMENT  # bytes that glibc needs in addition to align a block; 112
_SHIFT = 17 * _ALIGNMENT  # more than the 1,032 bytes up to which a thread keeps freed blocks
_SHIFTS = 16384
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


class Place:
    """A place for a block that is allocated and freed again and again, in a process that keeps its pages.

    Otherwise the process would grow by the block's size whenever the place of the freed block is too small for the next
    one, which happens in two ways. Blocks that last are put there. And glibc aligns a block by taking up to 112 bytes
    more and freeing what is left over; the thread keeps such small pieces for its own next allocations, so that what
    follows the block is in use, and the place is as large as the block: too small to align the next one in.

    So other blocks get some space of their own, which glibc prefers because it takes the smallest that fits. Before the
    place is a strip, from which a place that has become too small by a few bytes gets more. If it is lost anyway, its
    pages are returned, so that the next one takes no more memory than it did.
    """

    def __init__(self, size: int) -> None:
        """Reserve it; what is reserved takes no memory until it is used.

        Args:
          size: bytes of the block; 0 reserves nothing.
        """
        self._size = size + _TO_ALIGN
        self._held: list[int] = []  # addresses of the blocks that bound the place and the others' space
        self._strip = self._strip_size = self._start = 0
        if size and _keeps_pages:
            self._library = _allocator()
            self._reserve()

    def prepare(self) -> None:
        """Make sure that the next block finds its place; call it before each allocation."""
        if not self._start or self._fits():
            return
        if self._strip_size > 2 * _SHIFT:
            self._strip_size -= _SHIFT
            self._start -= _SHIFT
            self._library.realloc(self._strip, self._strip_size)  # in its place, because it shrinks
            if self._fits():
                return
        self._release()
        return_freed_pages()
        self._reserve()

    def __del__(self) -> None:
        """Give the place up."""
        self._release()

    def _release(self) -> None:
        while self._held:
            self._library.free(self._held.pop())

    def _fits(self) -> bool:
        found = self._library.malloc(self._size)
        self._library.free(found)
        return found == self._start

    def _reserve(self) -> None:
        """Take a block and one after it, and free all of the first but the strip at its beginning."""
        library = self._library
        space = min(_BESIDE, self._size // 2)  # smaller than the place, so that it is preferred
        beside, end = library.malloc(space), self._bound(space)
        self._strip_size = _SHIFTS * _SHIFT - 8  # with glibc's own 8 bytes a multiple of the alignment
        self._strip = library.aligned_alloc(_ALIGNMENT, self._strip_size + self._size + _ALIGNMENT) or 0
        self._held = [address for address in (self._strip, self._bound(self._size), end) if address]
        self._start = 0
        library.free(beside)
        if self._strip:
            library.realloc(self._strip, self._strip_size)
            self._start = self._strip + self._strip_size + 8

    def _bound(self, size: int) -> int:
        """Return a small block behind one of `size` bytes that was just allocated."""
        # A small one would be put into any free space; so it begins as large.
        block = self._library.malloc(size)
        return (self._library.realloc(block, 2**16) or 0) if block else 0


def _allocator() -> ctypes.CDLL:
    """Return the C library, with the types of its functions for memory."""
    library, pointer, size = ctypes.CDLL(None), ctypes.c_void_p, ctypes.c_size_t
    library.malloc.restype, library.malloc.argtypes = pointer, [size]
    library.aligned_alloc.restype, library.aligned_alloc.argtypes = pointer, [size, size]
    library.realloc.restype, library.realloc.argtypes = pointer, [pointer, size]
    library.free.restype, library.free.argtypes = None, [pointer]
    return library


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
