"""A process keeps the pages that it frees; the system counts page faults in separate processes."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from awcl_jax.runtime import memory

# Megabytes allocated, written, freed, and allocated again by another thread, as XLA does from step to step.
MEGABYTES = 200
FAULTS = """
import ctypes, resource, threading
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def use(size={megabytes} << 20):
    block = library.malloc(size)
    ctypes.memset(block, 1, size)
    library.free(block)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keeps pages with glibc only")


def faults(before: str, **environment: str) -> int:
    code = before + FAULTS.format(megabytes=MEGABYTES)
    command = [sys.executable, "-c", code]
    return int(subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True).stdout)


def test_pages_are_kept_when_asked():
    pages = (MEGABYTES << 20) // os.sysconf("SC_PAGESIZE")
    assert faults("from awcl_jax.runtime import memory; memory.keep_freed_pages()") < pages / 100


def test_the_environment_does_the_same():
    pages = (MEGABYTES << 20) // os.sysconf("SC_PAGESIZE")
    assert faults("", **memory.ENVIRONMENT) < pages / 100


def test_pages_are_returned_otherwise():
    """Without this the tests above would show nothing; huge pages are too few to count."""
    hugepages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if hugepages.is_file() and "[always]" in hugepages.read_text():
        pytest.skip("pages are huge here")
    pages = (MEGABYTES << 20) // os.sysconf("SC_PAGESIZE")
    assert faults("") > pages / 2


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_nothing_happens_elsewhere(monkeypatch, system):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("asked for the C library"))
    memory.keep_freed_pages()


def test_freed_pages_are_returned_on_request():
    code = f"""
from awcl_jax.runtime import memory
from benchmarks.own_process import memory_mb
memory.keep_freed_pages()
blocks = [bytes([i % 256]) * (1 << 20) for i in range({MEGABYTES})]
del blocks
before = memory_mb("VmRSS")
memory.return_freed_pages()
print(before - memory_mb("VmRSS"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0.9 * MEGABYTES


@pytest.mark.parametrize("reserved", [True, False])
@pytest.mark.parametrize("alignment", [16, 64])
def test_a_block_finds_its_place_again(reserved, alignment):
    """Blocks of a megabyte and small ones last, some allocated beside the large block, some after it was freed."""
    code = f"""
import ctypes
from awcl_jax.runtime import memory
from benchmarks.own_process import memory_mb
memory.keep_freed_pages()
library = ctypes.CDLL(None)
library.aligned_alloc.restype, library.aligned_alloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t, ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def allocate(size):
    block = library.aligned_alloc({alignment}, size)
    ctypes.memset(block, 1, size)
    return block
def allocate_others():
    for size in [1 << 20, *range(16, 128, 16)]:
        allocate(size)
place = memory.Place({MEGABYTES} << 20 if {reserved} else 0)
before = memory_mb("VmRSS")
for _ in range(5):
    place.prepare()
    large = allocate({MEGABYTES} << 20)
    allocate_others()
    library.free(large)
    allocate_others()
print(memory_mb("VmRSS") - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (float(done.stdout) < 1.1 * MEGABYTES) == reserved


def test_a_place_that_another_block_took_is_returned():
    """A block that lasts takes three quarters of the place; the next place must take no more than these."""
    code = f"""
import ctypes
from awcl_jax.runtime import memory
from benchmarks.own_process import memory_mb
memory.keep_freed_pages()
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def allocate(megabytes):
    block = library.malloc(megabytes << 20)
    ctypes.memset(block, 1, megabytes << 20)
    return block
place = memory.Place({MEGABYTES} << 20)
allocate({MEGABYTES} * 5 // 4)  # too large for the place, and behind it
before = memory_mb("VmRSS")
place.prepare()
library.free(allocate({MEGABYTES}))
allocate({MEGABYTES} * 3 // 4)
place.prepare()
library.free(allocate({MEGABYTES}))
print(memory_mb("VmRSS") - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.1 * MEGABYTES * (1 + 3 / 4)
