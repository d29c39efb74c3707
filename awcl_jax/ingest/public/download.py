"""Fetch a publisher's archive from a Zenodo record, checked, and unpack it."""

import hashlib
import shutil
import zipfile
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from awcl_jax.runtime.errors import InputError

ZENODO = "https://zenodo.org/api/records"

_TIMEOUT = (10, 60)  # seconds to connect, seconds without a byte
_CHUNK = 1 << 20


def fetch(record: str, name: str, folder: Path, *, base_url: str = ZENODO) -> Path:
    """Download one file of a record, checked against the size and MD5 sum that the record states.

    Args:
      record: number of the Zenodo record.
      name: file within the record.
      folder: where the file goes; a complete one that lies there already is used.
      base_url: address of the records.

    Returns:
      Path of the complete file.

    Raises:
      InputError: there is no network, no such record or file, or what came is not what the record promises.
    """
    entry = _find_entry(f"{base_url}/{record}", name)
    try:
        address, size = str(entry["links"]["self"]), int(entry["size"])
        method, _, checksum = str(entry["checksum"]).partition(":")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{base_url}/{record} describes {name} in a way not known here ({error!r}).") from error
    if method != "md5":
        raise InputError(f"{base_url}/{record} gives a {method} checksum of {name}; only md5 is known here.")
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
    """Unpack a zip archive into `folder`, whole or not at all.

    Args:
      archive: the zip file.
      folder: where its members go; one that exists is taken for an earlier, complete unpacking.

    Returns:
      `folder`.

    Raises:
      InputError: the archive is damaged, or a member's path would leave `folder`.
    """
    if folder.is_dir():
        return folder
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as members:
            # All paths are looked at before the first byte is written.
            for name in members.namelist():
                if not (part / name).resolve().is_relative_to(part.resolve()):
                    raise InputError(f"{archive} holds {name!r}, which would leave {folder}: nothing was unpacked.")
            for member in tqdm(members.infolist(), desc=f"Unpacking {archive.name}", unit=" files"):
                members.extract(member, part)
        part.rename(folder)
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive} is a damaged zip archive ({error}): delete it and start again.") from error
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
            tqdm(total=size, desc=f"Downloading {part.stem}", unit="B", unit_scale=True) as progress,
        ):
            response.raise_for_status()
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    except requests.RequestException as error:
        raise _unreachable(url, error) from error


def _check(part: Path, url: str, size: int, checksum: str) -> None:
    if part.stat().st_size != size:
        raise InputError(f"{url} sent {part.stat().st_size:,} of {size:,} bytes: removed; start again.")
    if (found := _md5(part)) != checksum:
        raise InputError(f"{url} sent a file with MD5 sum {found} in place of {checksum}: removed; start again.")


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
    return InputError(f"Cannot download {url} ({reason}). --source=DIR takes a folder already downloaded.")
