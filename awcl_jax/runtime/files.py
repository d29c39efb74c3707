"""Files that appear only when complete, and locks on files and folders."""

import contextlib
import errno
import fcntl
import os
import re
import resource
import shutil
import stat
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

from awcl_jax.runtime.errors import InputError

_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield an empty file beside `path` to write to; it replaces `path` if this block succeeds, and else is deleted.

    So a reader sees the old file or the new, never half of one. The name is unique to this call, because several
    processes may write the same file at once. What a killed process has left of the same file is deleted.
    """
    with _new_part(path, folder=False) as part:
        yield part
        part.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Write a text in UTF-8 by `atomic_write`."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, as `atomic_write` does a file; `path` must not exist, or be `vacant`.

    A folder that exists is filled rather than replaced, from a folder in it: a shell may be in it, a volume mounted at
    it, or its parent not be writable. Its entries then appear one after the other, in the order of their writing.

    Raises:
      OSError: `path` cannot be written.
    """
    if not path.is_dir():
        with _new_part(path, folder=True) as part:
            yield part
            part.replace(path)
        return
    with _new_part(path / path.name, folder=True, known_as=path) as part:
        yield part
        for entry in sorted(part.iterdir(), key=lambda entry: entry.stat().st_mtime_ns):
            entry.replace(path / entry.name)


def vacant(path: Path) -> bool:
    """Return whether `atomic_folder` may write there: nothing exists, or a folder with at most what it left, killed."""
    if not path.is_dir():
        return not path.exists()
    return all(_parts_of(path).fullmatch(entry.name) for entry in path.iterdir())


@contextlib.contextmanager
def _new_part(path: Path, *, folder: bool, known_as: Path | None = None) -> Iterator[Path]:
    """Make a file or folder beside `path` and lock it in this block, which shows others that its writer lives.

    Errors name it `known_as`, by default `path`: users know the file by this name.
    """
    known_as = known_as or path
    try:
        _remove_leftovers(path)
        while (made := _make_locked(path, folder=folder)) is None:
            pass
        part, handle = made
        try:
            yield part
        finally:
            _remove(part)
            os.close(handle)
    except OSError as error:
        if error.filename is None and error.errno in _WRITING:  # of a write, which knows no name
            error.filename = str(known_as)
        elif error.filename is not None:
            _name_whole(error, known_as)
        raise


def _name_whole(error: OSError, path: Path) -> None:
    """Let an error name a file, or one in a folder, as it would be called in the end."""
    failed = Path(os.fsdecode(error.filename))
    for part in (failed, *failed.parents):
        if _parts_of(path).fullmatch(part.name):
            error.filename, error.filename2 = str(path / failed.relative_to(part)), None


def _make_locked(path: Path, *, folder: bool) -> tuple[Path, int] | None:
    """Return a new part of `path` and the handle of its lock; None if another process took it for a leftover."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    part.mkdir() if folder else part.touch(exist_ok=False)
    try:
        handle = os.open(part, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lost = not part.exists()
    except BlockingIOError:  # it is about to delete it
        lost = True
    except OSError:  # the disk has no locks, so nobody deletes it
        lost = False
    if lost:
        os.close(handle)
        return None
    return part, handle


def _parts_of(path: Path) -> re.Pattern[str]:
    """Return what the names of the parts of a file or folder look like."""
    return re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{32}\.part")


def _remove_leftovers(path: Path) -> None:
    """Delete what processes that were killed have left of `path`: the system has released their locks."""
    with contextlib.suppress(OSError):  # a folder that cannot be listed, or a disk without locks
        for leftover in [entry for entry in path.parent.iterdir() if _parts_of(path).fullmatch(entry.name)]:
            if stat.S_IFMT(leftover.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                continue  # not ours: opening a pipe would wait
            with contextlib.suppress(BlockingIOError), locked(leftover, wait=False):
                _remove(leftover)


def _remove(part: Path) -> None:
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def require_regular(path: Path) -> None:
    """Check that a path is not a named pipe, a device or a socket, whose reading may never end; it need not exist.

    Raises:
      InputError: it is one.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # reported by who opens it
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path} is not a regular file. Replace it by a file or remove it.")


def require_plain_tree(folder: Path, *, links: bool) -> None:
    """Check that everything in a folder is a regular file or a folder.

    Args:
      folder: with all that is in it and below.
      links: whether links are allowed; what they lead to is then checked, too.

    Raises:
      InputError: something else is in it, or a link without `links`.
    """
    for place, folders, files in os.walk(folder):
        for path in (Path(place) / name for name in (*folders, *files)):
            if path.is_symlink() and not links:
                raise InputError(f"{path} is a link, which is not followed here. Replace it by the file.")
            require_regular(path)


def require_honest_zip(path: Path, *, most: int) -> None:
    """Check the size of what a ZIP archive, such as an NPZ, claims to hold, before it is unpacked.

    Args:
      path: the archive.
      most: bytes that it may hold whatever its own size; a larger file may hold a hundred times its size.

    Raises:
      InputError: it holds more, or it is not a regular file.
      OSError, zipfile.BadZipFile: it cannot be read.
    """
    require_regular(path)
    with zipfile.ZipFile(path) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    if claimed > max(most, 100 * size):
        raise InputError(f"{path} would unpack to {claimed:,} bytes, far more than its {size:,}. Replace or delete it.")


def lack_of_room(folder: Path, *, needed: int, files: int, largest: int) -> OSError | None:
    """Return the error with which writing to this folder would end, or None if there is room.

    Its text is the reason, and empty where that is the space.

    Args:
      folder: where to write.
      needed: bytes in all.
      files: number of new files and folders.
      largest: bytes of the largest file.
    """
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < largest:
        return OSError(errno.EFBIG, f"files may have {limit:,} bytes (ulimit -f), and {largest:,} are needed")
    if shutil.disk_usage(folder).free < needed:
        return OSError(errno.ENOSPC, "")
    disk = os.statvfs(folder)
    if disk.f_files and disk.f_favail < files:  # some file systems have no fixed number, and report 0
        return OSError(errno.ENOSPC, f"the disk has {disk.f_favail:,} free inodes, and {files:,} are needed")
    return None


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
