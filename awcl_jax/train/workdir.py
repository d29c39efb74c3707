"""The folder of a run in a bucket, through a folder of this host; a folder on a disk is used directly.

A run appends to its metrics, renames its checkpoints when they are complete, and reads both when it resumes, which a
bucket cannot do. So a run in a bucket works in a folder of the user's cache, which is downloaded at the start, and
uploaded with every checkpoint and at the end.

A checkpoint in the bucket is valid once its last file, `checkpoint.WHOLE`, exists: that file is uploaded after all
others and removed before them.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import jax

from awcl_jax.runtime import bucket, hub, multihost
from awcl_jax.runtime.cache import cache_folder
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import locked
from awcl_jax.train.checkpoint import FOLDER, WHOLE, is_temporary
from awcl_jax.train.run_folder import CONFIG_FILE

_WHOLE = re.compile(rf"{FOLDER}/(\d+)/{WHOLE}")
_IN_STEP = re.compile(rf"{FOLDER}/(\d+)/.*")
_STEP_AT_END = re.compile(rf"(.+)/{FOLDER}/(\d+)")


class Workdir:
    """The folder of one run. Every process of the run has one; only the first process's is uploaded.

    Use as a context manager: leaving it, even by an error, uploads what is new and removes the copy on this host. If
    the bucket cannot be written to then, the copy stays and the error names it. A second ctrl-C skips the upload.

    Attributes:
      home: the run's folder, as the user named it.
      files: where its files are read and written; equals `home` unless that is in a bucket.
    """

    def __init__(self, home: str | os.PathLike[str]) -> None:
        """Prepare the paths; nothing is read or written yet.

        Raises:
          InputError: it is an address other than of a bucket.
        """
        self._url = os.fspath(home).rstrip("/") if bucket.on_bucket(home) else None
        self.home: Path | str = Path(home) if self._url is None else self._url
        self.files = Path(home) if self._url is None else _place(self._url, str(jax.process_index()))
        self._sent: dict[str, tuple[int, int] | None] | None = None
        self._held = ExitStack()

    def hold(self) -> None:
        """Create the folder and lock it against every other process of this host until this object is left.

        Two processes writing to one folder would damage each other's metrics and checkpoints. On a disk without locks
        this has no effect.

        Raises:
          InputError: another process has locked it.
          OSError: the folder cannot be created.
        """
        self.files.mkdir(parents=True, exist_ok=True)
        try:
            self._held.enter_context(locked(self.files, wait=False))
        except BlockingIOError:
            raise InputError(
                f"Another process is running in {self.home}. Wait until it ends, or choose another --workdir."
            ) from None
        except OSError:
            return

    def fetch(self) -> None:
        """Make `files` a copy of the folder in the bucket, without checkpoints whose upload never ended.

        Raises:
          InputError: the bucket cannot be reached, or the folder holds files that are not of a run.
          OSError: there is not enough space.
        """
        if self._url is None:
            return
        objects = bucket.listed(self._url)
        if objects and CONFIG_FILE not in objects:
            raise InputError(
                f"{self._url} is not empty and not a run folder: {CONFIG_FILE} not found. Choose another --workdir."
            )
        complete = _complete_steps(objects)
        kept = {name: blob for name, blob in objects.items() if _step_of(name) in {None, *complete}}
        bucket.mirror(self._url, kept, self.files)
        # Files in the bucket but not here are removed with the next upload.
        self._sent = dict.fromkeys(objects) | self._stamps()

    def send(self, *, after: Callable[[], None] = lambda: None) -> None:
        """Upload what the first process has changed since the last upload.

        Args:
          after: waits until files being written here are complete; called only if the run is in a bucket.

        Raises:
          InputError: the bucket cannot be written to.
        """
        if self._url is None or self._sent is None or not multihost.first():
            return
        after()
        here = self._stamps()
        changed = [name for name, stamp in here.items() if self._sent.get(name) != stamp]
        gone = sorted(self._sent.keys() - here.keys())
        outdated = [name for name in (*gone, *changed) if _WHOLE.fullmatch(name) and name in self._sent]
        bucket.remove(outdated, self._url)
        # The metrics first, so that no checkpoint is ahead of them.
        for group in _in_order(changed):
            bucket.send(self.files, group, self._url)
        bucket.remove([name for name in gone if name not in outdated], self._url)
        self._sent = dict(here)

    def share(self) -> None:
        """Make the first process's files available to every process; all call it.

        Raises:
          InputError: one of them cannot reach the bucket.
        """
        if self._url is None:
            return
        with multihost.all_or_none():
            self.send()
        with multihost.all_or_none():
            if not multihost.first():
                self.fetch()

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Map the name of each complete file here to its size and time of last change."""
        files = sorted(file for file in self.files.rglob("*") if file.is_file())
        named = {file.relative_to(self.files): file.stat() for file in files}
        return {
            name.as_posix(): (status.st_size, status.st_mtime_ns)
            for name, status in named.items()
            if not any(part.endswith(".part") or is_temporary(part) for part in name.parts)
        }

    def __enter__(self) -> "Workdir":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Upload what is left, and release the lock."""
        with self._held:
            self._leave(kind, error)

    def _leave(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        if self._url is None or kind is KeyboardInterrupt:
            return
        try:
            self.send()
        except InputError as problem:
            if error is not None:
                return  # the error that ended the run is reported instead
            raise InputError(f"{problem} Files not uploaded are in {self.files}.") from problem
        shutil.rmtree(self.files, ignore_errors=True)
        if isinstance(error, InputError):
            raise InputError(str(error).replace(str(self.files), self._url)) from error


def fetch_run(path: str | os.PathLike[str], *, checkpoint: bool = True) -> Path:
    """Return the folder of a run, one of its checkpoints or an exported encoder, to be read on this host.

    From a bucket it is copied to the user's cache folder and stays there; next time only changes are copied.

    Args:
      path: folder of a run or an export, or `RUN/checkpoints/1000`, on this host or in a bucket; or an export on the
        Hugging Face hub, `hf://USER/NAME[@REVISION]`.
      checkpoint: also copy the checkpoint that `path` names, else the latest.

    Returns:
      The folder on this host.

    Raises:
      InputError: the bucket or the hub cannot be reached, or has no such folder.
      OSError: there is not enough space for the copy.
    """
    if hub.on_hub(path):
        return hub.fetch(os.fspath(path))
    if not bucket.on_bucket(path):
        return Path(path).expanduser()
    url = os.fspath(path).rstrip("/")
    named = _STEP_AT_END.fullmatch(url)
    home, asked = (named[1], int(named[2])) if named else (url, None)
    objects = bucket.listed(home)
    if not objects:
        raise InputError(f"{home} is empty or does not exist. Pass the folder of a run.")
    steps = _complete_steps(objects) if checkpoint else set()
    step = asked if asked in steps else max(steps, default=None)
    needed = {
        name: blob for name, blob in objects.items() if "/" not in name or (step is not None and _step_of(name) == step)
    }
    folder = _place(home, "read")
    with bucket.alone(folder):
        bucket.mirror(home, needed, folder)
    return folder if asked is None else folder / FOLDER / str(asked)


def _place(url: str, reader: str) -> Path:
    return bucket.place_of(url, cache_folder("runs") / reader)


def _complete_steps(names: Iterable[str]) -> set[int]:
    return {int(match[1]) for name in names if (match := _WHOLE.fullmatch(name))}


def _step_of(name: str) -> int | None:
    """Return the step of the checkpoint that a file belongs to; None for all other files."""
    match = _IN_STEP.fullmatch(name)
    return int(match[1]) if match else None


def _in_order(names: Iterable[str]) -> list[list[str]]:
    """Group names in upload order: other files, files of checkpoints, and the markers that make a checkpoint valid."""
    groups: list[list[str]] = [[], [], []]
    for name in names:
        groups[2 if _WHOLE.fullmatch(name) else 1 if _step_of(name) is not None else 0].append(name)
    return groups
