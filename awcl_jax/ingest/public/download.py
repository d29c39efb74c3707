"""Download, check and unpack a publisher's archive from a Zenodo record."""

import hashlib
import shutil
import zipfile
from pathlib import Path
from typing import Any

import requests

from awcl_jax.runtime.bar import Bar
from awcl_jax.runtime.errors import InputError

ZENODO = "https://zenodo.org/api/records"

_TIMEOUT = (10, 60)  # seconds to connect, seconds without a byte
_CHUNK = 1 << 20


def fetch(record: str, name: str, folder: Path, *, base_url: str = ZENODO) -> Path:
    """Download one file of a record, checked against the size and MD5 sum that the record states.

    Args:
      record: number of the Zenodo record.
      name: file within the record.
      folder: for the file; a complete one that exists is reused.
      base_url: address of the records.

    Returns:
      Path of the complete file.

    Raises:
      InputError: there is no network, no such record or file, or the download does not match the record.
    """
    entry = _find_entry(f"{base_url}/{record}", name)
    try:
        address, size = str(entry["links"]["self"]), int(entry["size"])
        method, _, checksum = str(entry["checksum"]).partition(":")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{base_url}/{record} describes {name} in an unknown format ({error!r}).") from error
    if method != "md5":
        raise InputError(f"{base_url}/{record} has a {method} checksum for {name}; only md5 is supported.")
    archive = folder / name
    if archive.is_file() and archive.stat().st_size == size and _md5(archive) == checksum:
        return archive
    folder.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(f"{name}.part")
    try:
        _stream(address, part, size)
        _check(part, address, size, checksum)
        part.replace(archive)
    finally:
        part.unlink(missing_ok=True)
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip archive into `folder`, completely or not at all.

    Args:
      archive: the zip file.
      folder: for its members; if it exists, it counts as unpacked.

    Returns:
      `folder`.

    Raises:
      InputError: the archive is damaged, or a member's path is outside `folder`.
    """
    if folder.is_dir():
        return folder
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as members:
            # All paths are checked before the first byte is written.
            for name in members.namelist():
                if not (part / name).resolve().is_relative_to(part.resolve()):
                    raise InputError(
                        f"{archive} has the member {name!r}, which is outside {folder}. Nothing was unpacked."
                    )
            for member in Bar(members.infolist(), desc=f"Unpacking {archive.name}", unit=" files"):
                members.extract(member, part)
        part.rename(folder)
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive} is a damaged zip archive ({error}). Delete it and rerun.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _find_entry(url: str, name: str) -> dict[str, Any]:
    try:
        response = requests.get(url, timeout=_TIMEOUT)
        response.raise_for_status()
        files = response.json()["files"]
        known = {entry["key"]: entry for entry in files}
    except requests.exceptions.JSONDecodeError as error:
        raise _unreachable(url, "the answer is not JSON") from error
    except requests.RequestException as error:
        raise _unreachable(url, error) from error
    except (KeyError, TypeError) as error:
        raise _unreachable(url, "the answer lists no files") from error
    if name not in known:
        raise InputError(f"{url} has no file {name!r}; it has {', '.join(sorted(known)) or 'none'}.")
    return known[name]


def _stream(url: str, part: Path, size: int) -> None:
    try:
        with (
            requests.get(url, stream=True, timeout=_TIMEOUT) as response,
            part.open("wb") as file,
            Bar(total=size, desc=f"Downloading {part.stem}", unit="B", unit_scale=True) as progress,
        ):
            response.raise_for_status()
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    except requests.RequestException as error:
        raise _unreachable(url, error) from error


def _check(part: Path, url: str, size: int, checksum: str) -> None:
    if part.stat().st_size != size:
        raise InputError(
            f"{url} sent {part.stat().st_size:,} of {size:,} bytes; they were removed. Rerun to try again."
        )
    if (found := _md5(part)) != checksum:
        raise InputError(
            f"{url} sent a file with MD5 sum {found} instead of {checksum}; it was removed. Rerun to try again."
        )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unreachable(url: str, reason: object) -> InputError:
    if isinstance(reason, requests.HTTPError) and reason.response is not None:
        reason = f"HTTP status {reason.response.status_code}"
    elif isinstance(reason, requests.Timeout):
        reason = "no answer in time"
    elif isinstance(reason, requests.ConnectionError):
        reason = "no connection"
    return InputError(f"Cannot download {url} ({reason}). Use --source=DIR for a folder that is already downloaded.")
