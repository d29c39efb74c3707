"""Find and open the files of a source. No path or link leads outside the source's folder."""

import contextlib
import os
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from awcl_jax.data.images import find_named
from awcl_jax.ingest.own.items import BadFileError, Fault, Listing, Row

_PICTURES = (
    *(".nii", ".nii.gz", ".mhd", ".mha", ".nrrd", ".dcm", ".jp2", ".heic", ".avif", ".png", ".jpg", ".jpeg", ".bmp"),
    *(".webp", ".gif", ".tif", ".tiff", ".mp4", ".m4v", ".mov", ".avi", ".mpeg", ".mpg", ".mkv", ".wmv", ".webm"),
    *(".flv", ".ts", ".mts", ".m2ts", ".vob", ".ogv", ".3gp"),
)
"""Endings of pictures and clips, to report those that a command does not read."""


def find_files(root: Path, suffixes: tuple[str, ...] | None) -> Listing:
    """List every file below a folder, in the order of their paths, numbered from 1.

    Hidden files and folders are ignored. Links are never followed: one that leads outside the folder is a fault; any
    other is ignored, because its target is found anyway, or listed as dangling if it does not exist.

    Args:
      root: the folder.
      suffixes: lower-case endings of the files to list; others are counted as ignored. None lists all.
    """
    listing = Listing()
    found: list[str] = []
    _walk(os.path.realpath(root), "", found, listing)
    for name in sorted(found):
        if suffixes is not None and not name.lower().endswith(suffixes):
            listing.ignored += 1
            listing.unread.update(ending for ending in _PICTURES if name.lower().endswith(ending))
            continue
        listing.rows.append(Row(len(listing.rows) + 1, root / name, name, scan=""))
    return listing


def _walk(root: str, inside: str, found: list[str], listing: Listing) -> None:
    try:
        with os.scandir(Path(root, inside)) as folder:
            entries = sorted(folder, key=lambda entry: entry.name)
    except OSError:
        listing.faults.append(Fault(0, "unreadable", path=inside))
        return
    for entry in entries:
        path = f"{inside}/{entry.name}" if inside else entry.name
        if entry.name.startswith("."):
            listing.ignored += 1
        elif entry.is_symlink():
            target = os.path.realpath(entry.path)
            if _is_inside(target, root):
                listing.ignored += 1
                listing.dangling.extend([path] * (not os.path.exists(target)))  # noqa: PTH110  Path raises for odd names
            else:
                listing.faults.append(Fault(0, "outside", path=path))
        elif entry.is_dir(follow_symlinks=False):
            _walk(root, path, found, listing)
        elif entry.is_file(follow_symlinks=False):
            found.append(path)
        else:
            listing.faults.append(Fault(0, "special", path=path))


def composed(name: str) -> str:
    """Return a name with accents in one piece (NFC), as most programs write them: macOS decomposes those of files."""
    return unicodedata.normalize("NFC", name)


def in_utf_8(path: str | Path) -> str:
    """Return a path with escapes (`\\xe4`) for bytes that are not UTF-8, which a name on Linux may have."""
    return os.fsencode(path).decode(errors="backslashreplace")


def resolve(name: str, root: Path) -> Path:
    """Return the file of this name, relative to `root`, found by `awcl_jax.data.images.find_named`.

    Raises:
      BadFileError: it does not exist, or is outside `root`, by its name or by a link.
    """
    try:
        path = Path(os.path.realpath(find_named(root, name)))
        if not _is_inside(str(path), os.path.realpath(root)):
            raise BadFileError("outside")
        if not path.exists():
            raise BadFileError("missing")
    except (ValueError, OSError) as error:  # a null character, a name that is too long, no permission
        raise BadFileError("missing") from error
    return path


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading.

    Raises:
      BadFileError: it does not exist, is a folder or not a regular file, is empty, or cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except FileNotFoundError as error:
        raise BadFileError("missing") from error
    except IsADirectoryError as error:
        raise BadFileError("folder") from error
    except ValueError as error:  # a name with a null character, which no disk can have
        raise BadFileError("missing") from error
    except OSError as error:
        raise BadFileError("unreadable") from error
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadFileError("special")
        if not status.st_size:
            raise BadFileError("no_bytes")
        yield file


def _is_inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
