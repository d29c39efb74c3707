"""Folders in a Google Cloud Storage bucket, `gs://BUCKET/FOLDER`, accepted in place of a path.

The only module that imports Google's client, an extra, and only when it is needed. It verifies the CRC-32C of each file
that it copies. A file appears in a bucket only when it is complete, but a bucket has no folders, cannot append to a
file, and renames one file at a time. So no code works on a bucket directly: files to read are downloaded, and written
files are uploaded (see `awcl_jax.train.workdir`).
"""

import base64
import contextlib
import errno
import functools
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from awcl_jax.runtime.cache import cache_folder
from awcl_jax.runtime.errors import InputError, first_line
from awcl_jax.runtime.files import lack_of_room, locked

_SCHEME = "gs://"
_WORKERS = 8  # files copied at once
_CHUNK = 2**24

Objects = Mapping[str, Any]
"""Name within a folder of a bucket -> the client's object for that file, as listed."""


def on_bucket(path: str | os.PathLike[str]) -> bool:
    """Return whether this is a folder in a bucket.

    Raises:
      InputError: it is another kind of address.
    """
    text = os.fspath(path)
    if "://" not in text:
        return False
    if not text.startswith(_SCHEME) or not text.removeprefix(_SCHEME).partition("/")[0]:
        raise InputError(f"A folder must be a path, or gs://BUCKET/FOLDER on Google Cloud Storage; got {text!r}.")
    return True


def place_of(url: str, root: Path) -> Path:
    """Return the path for a bucket's folder below a folder of this host: `root/BUCKET/FOLDER`."""
    place = root.joinpath(*url.removeprefix(_SCHEME).rstrip("/").split("/"))
    _require_inside(place, root)
    return place.resolve()


def listed(url: str) -> dict[str, Any]:
    """List the files in a folder of a bucket and below; none if the folder does not exist.

    Raises:
      InputError: the bucket does not exist or cannot be reached.
    """
    bucket, prefix = _parts(url)
    with _reaching(url, "read"):
        blobs = _client().list_blobs(bucket, prefix=prefix)
        # A name that ends in "/" is how consoles show an empty folder.
        return {blob.name.removeprefix(prefix): blob for blob in blobs if not blob.name.endswith("/")}


def mirror(url: str, objects: Objects, folder: Path) -> None:
    """Make a folder of this host hold exactly these files of the bucket's folder `url`, as they were listed.

    Files that it already holds are not downloaded again.

    Raises:
      InputError: the bucket cannot be reached, a file was deleted, arrives damaged, or has a name that leads elsewhere.
      OSError: there is not enough space.
    """
    for name in objects:
        _require_inside(folder / name, folder)
    for file in _files(folder).keys() - objects.keys():
        (folder / file).unlink()
    for inner, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # it is not empty
            Path(inner).rmdir()
    missing = [(blob, folder / name) for name, blob in objects.items() if not _is(folder / name, blob)]
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(blob.size for blob, _ in missing)
    largest = max((blob.size for blob, _ in missing), default=0)
    lack = lack_of_room(folder, needed=needed, files=len(missing), largest=largest)
    if lack is not None:
        what = "No space left" if lack.errno == errno.ENOSPC else "File too large"
        size = f"{needed / 1e9:.2f} GB" + (f": {lack.strerror}" if lack.strerror else "")
        message = f"{what} for a copy of {url} ({size}). Free space or set XDG_CACHE_HOME"
        raise OSError(lack.errno, message, str(folder))
    for _, target in missing:
        target.parent.mkdir(parents=True, exist_ok=True)
    with _reaching(url, "read"):
        from google.cloud.storage import transfer_manager as transfers

        pairs = [(blob, str(target)) for blob, target in missing]
        transfers.download_many(pairs, raise_exception=True, worker_type=transfers.THREAD, max_workers=_WORKERS)


def send(folder: Path, names: Iterable[str], url: str) -> None:
    """Upload these files of a folder to the folder of a bucket; each appears there only when complete.

    Raises:
      InputError: the bucket cannot be written to.
    """
    bucket, prefix = _parts(url)
    with _reaching(url, "written to"):
        from google.cloud.storage import transfer_manager as transfers

        target = _client().bucket(bucket)
        pairs = [(str(folder / name), target.blob(prefix + name)) for name in names]
        transfers.upload_many(pairs, raise_exception=True, worker_type=transfers.THREAD, max_workers=_WORKERS)


def remove(names: Iterable[str], url: str) -> None:
    """Delete these files of a folder in a bucket, if they still exist.

    Raises:
      InputError: the bucket cannot be written to.
    """
    bucket, prefix = _parts(url)
    with _reaching(url, "written to"):
        target = _client().bucket(bucket)
        target.delete_blobs([target.blob(prefix + name) for name in names], on_error=lambda blob: None)


def local_dataset(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a dataset on this host; a dataset in a bucket is copied first, once for each version of it.

    The copy is in the user's cache folder, named after the names, sizes and checksums of all files: a dataset that
    changed is copied again. An interrupted copy resumes, and of several processes one copies for all.

    Raises:
      InputError: the bucket cannot be reached or has no such folder, or a file arrives damaged.
      OSError: there is not enough space for the copy.
    """
    if not on_bucket(path):
        return Path(path).expanduser()
    url = os.fspath(path).rstrip("/")
    objects = {name: blob for name, blob in listed(url).items() if not _left_over(name)}
    if not objects:
        raise InputError(f"{url} is empty or does not exist. Pass the folder of a prepared dataset.")
    state = sorted((name, blob.size, blob.crc32c) for name, blob in objects.items())
    folder = cache_folder("datasets") / hashlib.sha256(repr((url, state)).encode()).hexdigest()[:16]
    with alone(folder):
        if not folder.is_dir():
            size = sum(blob.size for blob in objects.values()) / 1e9
            print(f"Copying {url} ({size:.2f} GB) to {folder} (only once).", file=sys.stderr, flush=True)
            # Renamed when complete, so that no process mistakes half a copy for the dataset.
            part = folder.with_name(f"{folder.name}.part")
            mirror(url, objects, part)
            part.rename(folder)
    return folder


def _parts(url: str) -> tuple[str, str]:
    """Return the bucket, and the prefix of the names of the folder's files."""
    bucket, _, folder = url.removeprefix(_SCHEME).rstrip("/").partition("/")
    return bucket, f"{folder}/" if folder else ""


@functools.cache
def _client() -> Any:
    from google.cloud import storage

    return storage.Client()


@contextlib.contextmanager
def _reaching(url: str, action: str) -> Iterator[None]:
    """Turn any failure of the client's libraries into one line that names the bucket and what failed."""
    bucket = _SCHEME + _parts(url)[0]
    try:
        yield
    except ImportError:
        raise InputError(f"{bucket} needs the package google-cloud-storage: pip install 'awcl_jax[gcs]'.") from None
    except Exception as error:  # google-auth, google-api-core, requests and the operating system each raise their own
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise InputError(
            f"The bucket {bucket} cannot be {action} ({first_line(error)[:200]}). Check its name, and sign in with "
            "`gcloud auth application-default login`, or grant this machine's service account the role Storage Object "
            "User."
        ) from error


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Allow only one process of this host at a time into this block, for this folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock")
    lock.touch()
    with locked(lock, wait=True):
        yield


def _require_inside(path: Path, folder: Path) -> None:
    # In somebody else's bucket a file might be named "../../.profile".
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"A file in the bucket has a name that leads out of its folder ({path.name}). Rename it.")


def _left_over(name: str) -> bool:
    """Return whether a file is not part of a dataset: a download, a killed preparation's leftover, or a hidden file."""
    return any(part == "downloads" or part.startswith((".", "incomplete.")) for part in PurePosixPath(name).parts)


def _files(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}


def _is(file: Path, blob: Any) -> bool:
    """Return whether a file of this host equals that of the bucket."""
    if not file.is_file() or file.stat().st_size != blob.size:
        return False
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            checksum.update(chunk)
    return base64.b64encode(checksum.digest()).decode() == blob.crc32c
