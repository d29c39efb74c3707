"""Decoded frames on disk: a file of squares beside a dataset, so that each frame is decoded once for all runs.

The file has a slot for each record: the pixels, then a checksum of them, of the file's key and of the frame's id. So a
slot shows by itself whether it may be used. A hole that nobody has filled, a slot that a killed process or a power
failure has cut short, and pixels of another dataset all fail the checksum, and the frame is decoded. Processes need not
wait for each other: whoever fills a slot writes the same bytes.
"""

import contextlib
import fcntl
import functools
import os
import shutil
import sys
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from awcl_jax.runtime.cache import cache_folder
from awcl_jax.runtime.errors import InputError, first_line
from awcl_jax.runtime.files import locked

FOLDER = ".decoded"
"""Folder beside the records; hidden, so that nothing takes it for a part of the dataset."""

_SUFFIX = ".pixels"
_CHECKSUM = 4  # bytes
_GB = 1e9


class DecodedFrames:
    """An open file of decoded frames; safe to use from many threads, and by many processes at once.

    It is read with `preadv`, not mapped: a mapped file that another process cuts short, or whose disk fails or is full,
    ends the process with a signal instead of an error.

    Args:
      path: the file, created if it does not exist. A file of another user that cannot be written to is only read.
      slots: number of records.
      size: edge of the squares.

    Raises:
      OSError: it can neither be created nor read.
    """

    def __init__(self, path: Path, *, slots: int, size: int) -> None:
        self.path = path
        self._edge = size
        self._slot = size**2 + _CHECKSUM
        self._key = zlib.crc32(path.name.encode())
        try:
            # A dataset may be a stranger's, with a link to a file of this user.
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            self._writes = True
        except OSError:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._writes = False
        weakref.finalize(self, os.close, self._file)
        with contextlib.suppress(OSError):  # the disk has no locks
            # Until the file is closed, so that no other process removes it to make room.
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if self._writes:
            with self._keeping():
                if os.fstat(self._file).st_size < slots * self._slot:
                    os.ftruncate(self._file, slots * self._slot)  # holes, which take no space
                os.utime(self._file)  # the files used last are kept

    def read(self, slot: int, frame_id: str, out: UInt8[np.ndarray, "size size"]) -> bool:
        """Read a frame into `out`, and return whether it was there; if not, `out` has no meaning."""
        checksum = bytearray(_CHECKSUM)
        try:
            count = os.preadv(self._file, [out.data, checksum], slot * self._slot)
        except OSError:
            return False
        return count == self._slot and checksum == self._checksum(frame_id, out)

    def write(self, slot: int, frame_id: str, image: UInt8[np.ndarray, "size size"]) -> None:
        """Keep a frame. If the disk is full or fails, print one line and write no more."""
        if self._writes:
            with self._keeping():
                os.pwritev(self._file, [image.data, self._checksum(frame_id, image)], slot * self._slot)

    def _checksum(self, frame_id: str, image: UInt8[np.ndarray, "size size"]) -> bytes:
        return zlib.crc32(image.data, zlib.crc32(frame_id.encode(), self._key)).to_bytes(_CHECKSUM)

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._writes:
                self._writes = False
                _warn(f"decoded frames are no longer kept in {self.path.parent} ({first_line(error)})")


def open_decoded(dataset: Path, name: str, *, slots: int, size: int, limit_gb: float) -> DecodedFrames | None:
    """Open the file of a dataset's decoded frames; print one line and return None if there is no room for it.

    It is in the dataset's folder or, if that is read-only, in the user's cache folder.

    Args:
      dataset: folder of the prepared dataset.
      name: of the file. It must differ wherever pixels may differ.
      slots: number of records of the dataset.
      size: edge of the squares.
      limit_gb: bytes that all files in the folder may have, in GB: those used longest ago, and by nobody now, are
        removed to make room. 0 keeps nothing.
    """
    if not limit_gb:
        return None
    needed = slots * (size**2 + _CHECKSUM)
    if needed > limit_gb * _GB:
        _warn(f"decoded frames are not kept on disk: {needed / _GB:.1f} GB, and disk_cache_gb={limit_gb:g}")
        return None
    why = ""
    for folder in _folders(dataset):
        path = folder / f"{name}{_SUFFIX}"
        try:
            # For its owner in the user's own folder: the frames are patients'.
            folder.mkdir(parents=True, exist_ok=True, mode=0o777 if folder.parent == dataset else 0o700)
            _make_room(path, needed, limit_gb * _GB)
            if lack := _lack(path, needed):
                why = lack
                continue
            return DecodedFrames(path, slots=slots, size=size)
        except OSError as error:
            why = why or first_line(error)
    _warn(f"decoded frames are not kept on disk ({why})")
    return None


def _folders(dataset: Path) -> Iterator[Path]:
    yield dataset / FOLDER
    with contextlib.suppress(InputError):  # no home folder
        yield cache_folder("decoded")


def _make_room(path: Path, needed: int, limit: float) -> None:
    """Remove files that no process has open, those used longest ago first, until another one fits the limit."""
    others = []
    for file in path.parent.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process has just removed it
            others.append((file.stat().st_mtime_ns, file.stat().st_size, file))
    excess = sum(size for _, size, file in others if file != path) + needed - limit
    for _, size, file in sorted(others):
        if excess <= 0:
            return
        with contextlib.suppress(OSError), locked(file, wait=False):
            if file != path:
                file.unlink()
                excess -= size


def _lack(path: Path, needed: int) -> str:
    """Return why there is no room for the rest of a file: half of the free space is left for what the run writes."""
    with contextlib.suppress(FileNotFoundError):
        needed -= path.stat().st_blocks * 512
    free = shutil.disk_usage(path.parent).free
    if 2 * needed > free:
        return f"{needed / _GB:.1f} GB are more than half of the {free / _GB:.1f} GB free in {path.parent}"
    return ""


@functools.cache
def _warn(reason: str) -> None:
    """Print a line, once in a process: its readers share a disk."""
    print(f"warning: {reason}; frames are decoded each time.", file=sys.stderr, flush=True)
