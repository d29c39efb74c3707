"""The folder of a run that lies on a bucket, through a folder of this host; one on a disk is used as it is.

A run appends to its metrics, renames its checkpoints when they are whole, and reads both back when it goes on: a disk
can do that. So a run on a bucket works in a folder of the user's cache, which is fetched when it starts, and sent with
every checkpoint and at the end.

A checkpoint counts on the bucket from the moment that its last file is there, `checkpoint.WHOLE`: that is sent after
all others and removed before them.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import jax

from awcl_jax.runtime import bucket, multihost
from awcl_jax.runtime.cache import cache_folder
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import locked
from awcl_jax.train.checkpoint import FOLDER, WHOLE, is_temporary
from awcl_jax.train.run_folder import CONFIG_FILE

_WHOLE = re.compile(rf"{FOLDER}/(\d+)/{WHOLE}")
_IN_STEP = re.compile(rf"{FOLDER}/(\d+)/.*")
_STEP_AT_END = re.compile(rf"(.+)/{FOLDER}/(\d+)")


class Workdir:
    """The folder of one run. Every process of the run has its own, of which the first one's is sent.

    Use as a context manager: leaving it sends what is new, be it by an error, and leaves nothing on this host. Where
    the bucket cannot be written then, all stays here and the error says where. A second ctrl-C does not wait for it.

    Attributes:
      home: the run's folder, as the user knows it.
      files: where its files are read and written; `home` itself where that is not on a bucket.
    """

    def __init__(self, home: str | os.PathLike[str]) -> None:
        """Nothing is read or written yet.

        Raises:
          InputError: it is the address of something that is no bucket.
        """
        self._url = os.fspath(home).rstrip("/") if bucket.on_bucket(home) else None
        self.home: Path | str = Path(home) if self._url is None else self._url
        self.files = Path(home) if self._url is None else _place(self._url, str(jax.process_index()))
        self._sent: dict[str, tuple[int, int] | None] | None = None
        self._held = ExitStack()

    def hold(self) -> None:
        """Keep every other process of this host out of the run until it is left; its folder is made.

        Two that write into one folder would spoil each other's metrics and checkpoints. A disk that knows no locks
        holds nobody out.

        Raises:
          InputError: another process is in it.
          OSError: the folder cannot be made.
        """
        self.files.mkdir(parents=True, exist_ok=True)
        try:
            self._held.enter_context(locked(self.files, wait=False))
        except BlockingIOError:
            raise InputError(
                f"Another process is at work in {self.home}: wait until it has ended, or give another --workdir."
            ) from None
        except OSError:
            return

    def fetch(self) -> None:
        """Make `files` what is on the bucket, but for checkpoints that were never sent to the end.

        Raises:
          InputError: the bucket cannot be reached, or holds other files there than those of a run.
          OSError: there is no room.
        """
        if self._url is None:
            return
        found = bucket.listed(self._url)
        if found and CONFIG_FILE not in found:
            raise InputError(f"{self._url} holds files but no run ({CONFIG_FILE} is missing); give another --workdir.")
        whole = _whole_steps(found)
        wanted = {name: blob for name, blob in found.items() if _step_of(name) in {None, *whole}}
        bucket.mirror(self._url, wanted, self.files)
        # What is on the bucket and not here is removed with the next sending.
        self._sent = dict.fromkeys(found) | self._stamps()

    def send(self, *, after: Callable[[], None] = lambda: None) -> None:
        """Bring what the first process has changed since to the bucket.

        Args:
          after: waits until what is being written here is whole; called where there is a bucket.

        Raises:
          InputError: the bucket cannot be written.
        """
        if self._url is None or self._sent is None or not multihost.first():
            return
        after()
        here = self._stamps()
        changed = [name for name, stamp in here.items() if self._sent.get(name) != stamp]
        gone = sorted(self._sent.keys() - here.keys())
        untrue = [name for name in (*gone, *changed) if _WHOLE.fullmatch(name) and name in self._sent]
        bucket.remove(untrue, self._url)
        # The metrics first, so that no checkpoint is ahead of them.
        for group in _in_order(changed):
            bucket.send(self.files, group, self._url)
        bucket.remove([name for name in gone if name not in untrue], self._url)
        self._sent = dict(here)

    def share(self) -> None:
        """What the first process has written is there for each of them; all call it.

        Raises:
          InputError: the bucket cannot be reached by one of them.
        """
        if self._url is None:
            return
        with multihost.all_or_none():
            self.send()
        with multihost.all_or_none():
            if not multihost.first():
                self.fetch()

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Each file here that is whole: name -> size and time of its last change."""
        files = sorted(file for file in self.files.rglob("*") if file.is_file())
        named = {file.relative_to(self.files): file.stat() for file in files}
        return {
            name.as_posix(): (status.st_size, status.st_mtime_ns)
            for name, status in named.items()
            if not any(part.endswith(".part") or is_temporary(part) for part in name.parts)
        }

    def __enter__(self) -> "Workdir":
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send what is left, and let others in."""
        with self._held:
            self._leave(kind, error)

    def _leave(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        if self._url is None or kind is KeyboardInterrupt:
            return
        try:
            self.send()
        except InputError as problem:
            if error is not None:
                return  # what has ended the run is to be said
            raise InputError(f"{problem} What could not be sent is in {self.files}.") from problem
        shutil.rmtree(self.files, ignore_errors=True)
        if isinstance(error, InputError):
            raise InputError(str(error).replace(str(self.files), self._url)) from error


def fetch_run(path: str | os.PathLike[str], *, checkpoint: bool = True) -> Path:
    """A run, one of its checkpoints or an exported encoder, to be read on this host.

    From a bucket it is copied into the user's cache folder, where it stays; the next time only what has changed is.

    Args:
      path: folder of a run or an export, or `RUN/checkpoints/1000`; of this host, or on a bucket.
      checkpoint: copy the checkpoint that is meant, too: the one that is named, else the latest.

    Returns:
      The folder on this host.

    Raises:
      InputError: the bucket cannot be reached, or has no such folder.
      OSError: there is no room for the copy.
    """
    if not bucket.on_bucket(path):
        return Path(path).expanduser()
    url = os.fspath(path).rstrip("/")
    named = _STEP_AT_END.fullmatch(url)
    home, asked = (named[1], int(named[2])) if named else (url, None)
    found = bucket.listed(home)
    if not found:
        raise InputError(f"There is nothing at {home}: give the folder of a run.")
    steps = _whole_steps(found) if checkpoint else set()
    step = asked if asked in steps else max(steps, default=None)
    wanted = {
        name: blob for name, blob in found.items() if "/" not in name or (step is not None and _step_of(name) == step)
    }
    folder = _place(home, "read")
    with bucket.alone(folder):
        bucket.mirror(home, wanted, folder)
    return folder if asked is None else folder / FOLDER / str(asked)


def _place(url: str, reader: str) -> Path:
    return bucket.place_of(url, cache_folder("runs") / reader)


def _whole_steps(names: Iterable[str]) -> set[int]:
    return {int(match[1]) for name in names if (match := _WHOLE.fullmatch(name))}


def _step_of(name: str) -> int | None:
    """The step of the checkpoint that a file belongs to; None for all other files."""
    match = _IN_STEP.fullmatch(name)
    return int(match[1]) if match else None


def _in_order(names: Iterable[str]) -> list[list[str]]:
    """All other files; those of checkpoints; and those by which a checkpoint counts."""
    groups: list[list[str]] = [[], [], []]
    for name in names:
        groups[2 if _WHOLE.fullmatch(name) else 1 if _step_of(name) is not None else 0].append(name)
    return groups
