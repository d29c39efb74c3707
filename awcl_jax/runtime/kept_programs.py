"""Compiled programs kept between runs, so that a later start neither traces nor compiles them.

JAX's own cache finds a program by its traced text, and tracing a ResNet's step takes half of a start. Here a program is
found by what decides its text: the sources of this package, the versions of the libraries, the settings of JAX and XLA,
the processor, and what the caller names, such as configuration and shapes. So a changed line is another program.

A file holds machine code, and loading one runs it. So it is only loaded from a folder and a file of this user that
nobody else can write, and if its digest and all that it was found by match; otherwise the program is compiled anew.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import pickle
import platform
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
from jax.experimental import serialize_executable

from awcl_jax.runtime.files import atomic_write
from awcl_jax.runtime.source_digest import source_digest

Name = Mapping[str, Any]
"""What decides a program besides sources, libraries, settings and processor; of JSON's types."""

_HEAD = b"awcl_jax compiled program 1\n"
_DIGEST = hashlib.sha256().digest_size
_MOST = 48  # files; those not used for longest are deleted
_MOST_LOADED = 4  # a ResNet's step holds 170 MB
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "chex", "ml_dtypes", "numpy")
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_COMPILED, _READ = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"
_SOURCES = source_digest()  # while they are imported, not when a program is kept, minutes later
_compiles_anew = False
_of_this_process: dict[str, jax.stages.Compiled] = {}  # the last ones, of one study's runs, by key


def load(name: Name, devices: Sequence[jax.Device], *, once: bool = False) -> jax.stages.Compiled | None:
    """Return a program that an earlier start kept, or None.

    Args:
      name: of the program.
      devices: that it runs on.
      once: the caller runs it once and lets it go; otherwise this process holds it for its next call.
    """
    folder = _folder()
    if folder is None:
        return None
    key = _key(name, devices)
    if (known := _of_this_process.get(key)) is not None:
        _remember(key, known)
        return known
    try:
        file = folder / _file_name(key)
        content = _read_own(file)
        if content is None or not content.startswith(_HEAD):
            return None
        # Views, not copies: a process with a small step takes most memory while XLA reads its program.
        digest, body = memoryview(content)[len(_HEAD) :][:_DIGEST], memoryview(content)[len(_HEAD) + _DIGEST :]
        if hashlib.sha256(body).digest() != digest:
            return None
        stored_key, (executable, in_tree, out_tree) = pickle.loads(body)
        del content, digest, body
        if stored_key != key:
            return None
        found = serialize_executable.deserialize_and_load(executable, in_tree, out_tree, execution_devices=devices)
        with contextlib.suppress(OSError):
            os.utime(file)  # those used last are the last to be deleted
        if not once:
            _remember(key, found)
        return found
    except Exception:  # whatever is wrong with it, it can be compiled again
        return None


def compile_aside(name: Name, devices: Sequence[jax.Device], compile_there: Callable[[], object]) -> None:
    """Let another process compile and keep a program, if none is kept and it could be; on CPUs alone.

    Args:
      name, devices: of the program.
      compile_there: runs that process to its end. If it fails, this process compiles the program later.
    """
    if devices[0].platform == "cpu" and _folder() is not None and load(name, devices) is None:
        compile_there()


def keep(name: Name, devices: Sequence[jax.Device], program: jax.stages.Compiled, *, once: bool = False) -> None:
    """Keep a compiled program for later starts; does nothing where that is not possible. `once` as for `load`."""
    folder = _folder()
    if folder is None:
        return
    key = _key(name, devices)
    if not once:
        _remember(key, program)
    # A full disk, another user's folder, or a program that XLA cannot write must not end a run; nor must sources that
    # are gone by now.
    with contextlib.suppress(Exception):
        if source_digest() != _SOURCES:
            return  # edited since this process read them
        body = pickle.dumps((key, serialize_executable.serialize(program)))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder.stat()):
            return
        with atomic_write(folder / _file_name(key)) as part:
            part.chmod(0o600)  # before its content, whatever the umask
            part.write_bytes(_HEAD + hashlib.sha256(body).digest() + body)
        _delete_oldest(folder)


def load_or_compile(
    name: Name | None, devices: Sequence[jax.Device], lower: Callable[[], jax.stages.Lowered], *, once: bool = False
) -> jax.stages.Compiled:
    """Return a kept program, or lower, compile and keep it; without a name it is not kept. `once` as for `load`."""
    found = None if name is None else load(name, devices, once=once)
    if found is None:
        lowered = lower()
        with _work_of_jax() as done:
            found = lowered.compile()
        # XLA writes a program that it has read without its machine code, and without an error. One that JAX has held
        # since an earlier call may have been read then.
        if name is not None and _COMPILED in done and _READ not in done:
            keep(name, devices, found, once=once)
    return found


def compile_anew() -> None:
    """Leave JAX's cache out in this process, which compiles programs to keep them."""
    global _compiles_anew
    _compiles_anew = True
    jax.config.update("jax_enable_compilation_cache", False)


@contextlib.contextmanager
def _work_of_jax() -> Iterator[list[str]]:
    """Yield a list to which each program is added that this thread compiles or reads from JAX's cache in this block.

    One that is read counts as compiled as well; one that JAX holds in memory counts as neither.
    """
    done: list[str] = []
    thread = threading.get_ident()

    def note(event: str, **details: str | int) -> None:
        if event in (_COMPILED, _READ) and threading.get_ident() == thread:
            done.append(event)

    def note_timed(event: str, duration_secs: float, **details: str | int) -> None:
        note(event)

    jax.monitoring.register_event_listener(note)
    jax.monitoring.register_event_duration_secs_listener(note_timed)
    try:
        yield done
    finally:
        jax.monitoring.unregister_event_listener(note)
        jax.monitoring.unregister_event_duration_listener(note_timed)


def _remember(key: str, program: jax.stages.Compiled) -> None:
    _of_this_process.pop(key, None)  # so that it becomes the last
    _of_this_process[key] = program
    while len(_of_this_process) > _MOST_LOADED:
        del _of_this_process[next(iter(_of_this_process))]


def _folder() -> Path | None:
    """Return the folder of kept programs: in that of JAX's cache, if it is used and on a disk, by one process."""
    root = jax.config.values["jax_compilation_cache_dir"]
    alone = hasattr(os, "getuid") and jax.process_count() == 1
    used = jax.config.values["jax_enable_compilation_cache"] or _compiles_anew
    if not root or "://" in root or not alone or not used:
        return None
    return Path(root) / "whole"


def _file_name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _key(name: Name, devices: Sequence[jax.Device]) -> str:
    """Return all that decides the program, as text."""
    settings = {field: repr(value) for field, value in jax.config.values.items() if "cache" not in field}
    given = {field: value for field, value in os.environ.items() if field.startswith(("JAX_", "XLA_"))}
    given.pop("JAX_COMPILATION_CACHE_DIR", None)
    place = (
        [str(device) for device in devices],
        len(jax.devices()),
        jax.process_count(),
        devices[0].client.platform_version,
    )
    return json.dumps([_this_installation(), settings, given, place, _processor(), name], sort_keys=True)


@functools.cache
def _this_installation() -> tuple[str, str, dict[str, str]]:
    """Return Python, a digest of this package's sources, and the versions of the libraries that trace and compile."""
    return sys.version, _SOURCES, {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _processor() -> tuple[str, list[str], int]:
    """Return the machine, what it says of its first core, and the cores that this process may use."""
    lines = []
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        # Frequencies change from hour to hour.
        lines = [line for line in first.splitlines() if not line.startswith(("cpu MHz", "bogomips", "BogoMIPS"))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return platform.platform(), lines, cores


def _read_own(path: Path) -> bytes | None:
    """Read a file if it and its folder are this user's alone."""
    if not _is_private(path.parent.stat()):
        return None
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        return file.read() if stat.S_ISREG(status.st_mode) and _is_private(status) else None


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.getuid() and not status.st_mode & _WRITABLE_BY_OTHERS


def _delete_oldest(folder: Path) -> None:
    files = sorted(
        (file for file in folder.iterdir() if not file.name.startswith(".")), key=lambda f: f.stat().st_mtime
    )
    for file in files[:-_MOST]:
        file.unlink(missing_ok=True)
