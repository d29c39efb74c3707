"""Folders on a bucket of Google Cloud Storage, `gs://BUCKET/FOLDER`, where others are a path.

The only module that knows Google's client, which is an extra and is imported when it is needed. It checks each file
that it moves by its CRC-32C. On a bucket a file is there when all of it is, but there are no folders, nothing can be
appended to, and only one file at a time is renamed. So nothing works on a bucket directly: what is read is copied from
there, and what is written is sent there (see `awcl_jax.train.workdir`).
"""

import base64
import contextlib
import errno
import functools
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from awcl_jax.runtime.cache import cache_folder
from awcl_jax.runtime.errors import InputError, first_line
from awcl_jax.runtime.files import locked

_SCHEME = "gs://"
_WORKERS = 8  # files that are moved at once
_CHUNK = 2**24

Objects = Mapping[str, Any]
"""Name within a folder of a bucket -> the client's object of that file, as it was when it was listed."""


def on_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder on a bucket.

    Raises:
      InputError: it is the address of something else.
    """
    text = os.fspath(path)
    if "://" not in text:
        return False
    if not text.startswith(_SCHEME) or not text.removeprefix(_SCHEME).partition("/")[0]:
        raise InputError(f"A folder is a path, or gs://BUCKET/FOLDER on Google Cloud Storage; got {text!r}.")
    return True


def place_of(url: str, root: Path) -> Path:
    """Where below a folder of this host what lies at this address has its place: `BUCKET/FOLDER`."""
    place = root.joinpath(*url.removeprefix(_SCHEME).rstrip("/").split("/"))
    _require_inside(place, root)
    return place.resolve()


def listed(url: str) -> dict[str, Any]:
    """The files in a folder of a bucket and below; none where there is no such folder.

    Raises:
      InputError: the bucket is not there or cannot be reached.
    """
    bucket, prefix = _parts(url)
    with _reaching(url, "read"):
        found = _client().list_blobs(bucket, prefix=prefix)
        # A name that ends in "/" is how consoles show an empty folder.
        return {blob.name.removeprefix(prefix): blob for blob in found if not blob.name.endswith("/")}


def mirror(url: str, objects: Objects, folder: Path) -> None:
    """Make a folder of this host hold these files of the bucket's folder `url`, as they were listed, and no others.

    Files that it has already are not fetched again.

    Raises:
      InputError: the bucket cannot be reached, a file has gone or arrives damaged, or has a name that leads elsewhere.
      OSError: there is no room for them.
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
    if shutil.disk_usage(folder).free < needed:
        message = f"No space left for a copy of {url} ({needed / 1e9:.2f} GB); make room or set XDG_CACHE_HOME"
        raise OSError(errno.ENOSPC, message, str(folder))
    for _, target in missing:
        target.parent.mkdir(parents=True, exist_ok=True)
    with _reaching(url, "read"):
        from google.cloud.storage import transfer_manager as transfers

        pairs = [(blob, str(target)) for blob, target in missing]
        transfers.download_many(pairs, raise_exception=True, worker_type=transfers.THREAD, max_workers=_WORKERS)


def send(folder: Path, names: Iterable[str], url: str) -> None:
    """Bring these files of a folder to the folder of a bucket, each as a whole.

    Raises:
      InputError: the bucket cannot be written.
    """
    bucket, prefix = _parts(url)
    with _reaching(url, "written"):
        from google.cloud.storage import transfer_manager as transfers

        there = _client().bucket(bucket)
        pairs = [(str(folder / name), there.blob(prefix + name)) for name in names]
        transfers.upload_many(pairs, raise_exception=True, worker_type=transfers.THREAD, max_workers=_WORKERS)


def remove(names: Iterable[str], url: str) -> None:
    """Delete these files of a folder on a bucket, where they are still there.

    Raises:
      InputError: the bucket cannot be written.
    """
    bucket, prefix = _parts(url)
    with _reaching(url, "written"):
        there = _client().bucket(bucket)
        there.delete_blobs([there.blob(prefix + name) for name in names], on_error=lambda blob: None)


def local_dataset(path: str | os.PathLike[str]) -> Path:
    """The folder of a dataset on this host; from a bucket it is copied, once for each state that it is in.

    The copy lies in the user's cache folder, named after the names, sizes and checksums of all files: a dataset that
    has changed is copied anew. A copy that was broken off goes on, and of several processes one copies for all.

    Raises:
      InputError: the bucket cannot be reached or has no such folder, or a file arrives damaged.
      OSError: there is no room for the copy.
    """
    if not on_bucket(path):
        return Path(path).expanduser()
    url = os.fspath(path).rstrip("/")
    objects = {name: blob for name, blob in listed(url).items() if not _left_over(name)}
    if not objects:
        raise InputError(f"There is nothing at {url}: give the folder of a prepared dataset.")
    state = sorted((name, blob.size, blob.crc32c) for name, blob in objects.items())
    folder = cache_folder("datasets") / hashlib.sha256(repr((url, state)).encode()).hexdigest()[:16]
    with alone(folder):
        if not folder.is_dir():
            size = sum(blob.size for blob in objects.values()) / 1e9
            print(f"Copying {url} ({size:.2f} GB) to {folder}, once.", file=sys.stderr, flush=True)
            # Renamed when complete, so that nobody takes half of it for the dataset.
            part = folder.with_name(f"{folder.name}.part")
            mirror(url, objects, part)
            part.rename(folder)
    return folder


def _parts(url: str) -> tuple[str, str]:
    """The bucket, and what the names of the folder's files begin with."""
    bucket, _, folder = url.removeprefix(_SCHEME).rstrip("/").partition("/")
    return bucket, f"{folder}/" if folder else ""


@functools.cache
def _client() -> Any:
    from google.cloud import storage

    return storage.Client()


@contextlib.contextmanager
def _reaching(url: str, done: str) -> Iterator[None]:
    """One line that names the bucket for whatever its libraries make of a failure."""
    bucket = _SCHEME + _parts(url)[0]
    try:
        yield
    except ImportError:
        raise InputError(f"{bucket} needs the package google-cloud-storage: pip install 'awcl_jax[gcs]'.") from None
    except Exception as error:  # google-auth, google-api-core, requests and the operating system each have their own
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise InputError(
            f"The bucket {bucket} cannot be {done} ({first_line(error)[:200]}): check its name, and sign in with "
            "`gcloud auth application-default login`, or give this machine's service account the role Storage Object "
            "User."
        ) from error


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one process of this host is in this block for this folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock")
    lock.touch()
    with locked(lock, wait=True):
        yield


def _require_inside(path: Path, folder: Path) -> None:
    # Of a bucket that is somebody else's a name might be "../../.profile".
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"A file on the bucket has a name that leads out of its folder ({path.name}): rename it.")


def _left_over(name: str) -> bool:
    """What no dataset consists of: downloads, what a preparation left when it was killed, and hidden files."""
    return any(part == "downloads" or part.startswith((".", "incomplete.")) for part in PurePosixPath(name).parts)


def _files(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}


def _is(file: Path, blob: Any) -> bool:
    """Whether a file of this host is that of the bucket."""
    if not file.is_file() or file.stat().st_size != blob.size:
        return False
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            checksum.update(chunk)
    return base64.b64encode(checksum.digest()).decode() == blob.crc32c
