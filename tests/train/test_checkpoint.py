"""Checkpoints of a run."""

import errno
import itertools
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import types
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from awcl_jax.runtime.errors import InputError
from awcl_jax.train.checkpoint import Checkpoints, checksums
from awcl_jax.train.state import TrainState

OPTIMISER = optax.adamw(1e-2)


def state_of(seed: int, steps: int = 1) -> TrainState:
    """Return a state whose optimiser has seen some gradients, in several number types."""
    a, b, g = (jax.random.normal(key, (3, 4)) for key in jax.random.split(jax.random.key(seed), 3))
    params = {"encoder": {"kernel": a, "half": b[0].astype(jnp.bfloat16)}, "projection": {"kernel": b}}
    state = TrainState.create({"params": params, "batch_stats": {"encoder": {"mean": g[1]}}}, OPTIMISER)
    grads = {"encoder": {"kernel": g, "half": g[0].astype(jnp.bfloat16)}, "projection": {"kernel": -g}}
    for _ in range(steps):
        state = state.update(grads=grads, batch_stats=state.batch_stats, optimiser=OPTIMISER)
    return state


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def kept(workdir) -> list[int]:
    return sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir() if folder.name.isdigit())


def test_a_restored_state_is_the_saved_one_bit_for_bit(tmp_path):
    state = state_of(0, steps=3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 3
        restored = checkpoints.restore(3, state_of(1))
    assert isinstance(restored, TrainState)
    assert_same_bits(restored, state)


def test_a_run_resumes_from_a_checkpoint_as_if_never_stopped(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state_of(0, steps=2))
    with Checkpoints(tmp_path) as checkpoints:
        state = checkpoints.restore(2, state_of(5))
    g = jax.random.normal(jax.random.split(jax.random.key(0), 3)[2], (3, 4))
    grads = {"encoder": {"kernel": g, "half": g[0].astype(jnp.bfloat16)}, "projection": {"kernel": -g}}
    assert_same_bits(
        state.update(grads=grads, batch_stats=state.batch_stats, optimiser=OPTIMISER), state_of(0, steps=3)
    )


def test_a_new_run_has_no_checkpoints(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (None, None)


def test_the_two_latest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, score in ((10, 0.2), (20, 0.9), (30, 0.5), (40, None), (50, 0.4), (60, None)):
            checkpoints.save(step, state_of(step), score=score)
        assert (checkpoints.latest_step, checkpoints.best_step) == (60, 20)
    assert kept(tmp_path) == [20, 50, 60]
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (60, 20)
        assert_same_bits(checkpoints.restore(20, state_of(0)), state_of(20))


def test_a_score_that_is_no_number_is_none(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, score in ((1, 0.9), (2, float("nan")), (3, 0.5), (4, 0.1), (5, 0.2)):
            checkpoints.save(step, state_of(step), score=score)
        assert checkpoints.best_step == 1
    assert kept(tmp_path) == [1, 4, 5]
    # As an earlier version wrote it.
    (tmp_path / "checkpoints" / "5" / "metrics" / "metrics").write_text('{"score": NaN}')
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step == 1


def test_scores_that_are_no_numbers_make_nothing_the_best(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step), score=float("nan"))
        assert checkpoints.best_step is None
    assert kept(tmp_path) == [2, 3]


def test_without_scores_the_two_latest_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state_of(step))
        assert checkpoints.best_step is None
    assert kept(tmp_path) == [3, 4]


def test_a_clock_that_is_set_in_the_middle_of_a_save_changes_nothing(tmp_path, monkeypatch):
    now, calls = time.time, itertools.count()
    # As after 1970, where a computer without a battery begins, and back.
    monkeypatch.setattr(time, "time", lambda: now() + 1.8e9 * (next(calls) % 2))
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step))
        checkpoints.wait()
        assert checkpoints.latest_step == 3
        assert_same_bits(checkpoints.restore(3, state_of(0)), state_of(3))


def test_a_half_written_checkpoint_is_neither_seen_nor_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state_of(5))
    half = tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    (half / "state" / "_METADATA").write_text("{")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 5
        assert_same_bits(checkpoints.restore(5, state_of(0)), state_of(5))
        checkpoints.save(9, state_of(9))
    assert not half.exists()
    assert kept(tmp_path) == [5, 9]


def test_read_only_leaves_what_the_run_is_writing_alone(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state_of(5))
    half = tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step == 5
        assert_same_bits(checkpoints.restore(5, state_of(0)), state_of(5))
    assert (half / "state").is_dir()
    with Checkpoints(tmp_path / "none", read_only=True) as checkpoints:
        assert checkpoints.latest_step is None
    assert not (tmp_path / "none").exists()


def test_leaving_by_an_error_still_finishes_the_last_checkpoint(tmp_path):
    def fail() -> None:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(7, state_of(7))
            raise RuntimeError("loss")

    with pytest.raises(RuntimeError, match="loss"):
        fail()
    with Checkpoints(tmp_path) as checkpoints:
        assert_same_bits(checkpoints.restore(7, state_of(0)), state_of(7))


def test_the_state_may_change_while_it_is_written(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {"kernel": jnp.zeros((256, 256))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(20):
            state = step(state)
        restored = checkpoints.restore(1, {"kernel": jnp.ones((256, 256))})
    np.testing.assert_array_equal(restored["kernel"], np.zeros((256, 256)))


def test_a_checkpoint_is_restored_onto_another_number_of_devices(tmp_path):
    state = {"kernel": jnp.arange(12.0).reshape(3, 4), "step": jnp.int32(4)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state)
    program = (
        "import sys, pathlib, jax, jax.numpy as jnp\n"
        "from awcl_jax.runtime import sharding\n"
        "from awcl_jax.train.checkpoint import Checkpoints\n"
        "mesh = sharding.make_mesh()\n"
        "blank = {'kernel': jnp.zeros((3, 4)), 'step': jnp.int32(0)}\n"
        "with Checkpoints(pathlib.Path(sys.argv[1])) as checkpoints:\n"
        "    state = checkpoints.restore(4, sharding.replicate(blank, mesh))\n"
        "print([len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)])\n"
        "print(int(state['step']), state['kernel'].ravel().tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["[3, 3]", f"4 {[float(x) for x in range(12)]}"]


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    state = {"kernel": np.zeros((1000, 1000), np.float32)}
    usage = shutil.disk_usage(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4_000_000))
        with pytest.raises(OSError, match=r"No space left .* \(the last one is of step 1\)\. Free space") as caught:
            checkpoints.save(2, state)
    assert caught.value.errno == errno.ENOSPC
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("inodes", "limit", "message", "code"),
    [
        (3, None, r"No space left .*3 free inodes, and 64 are needed; the last one is of step 1", errno.ENOSPC),
        (
            0,
            2**20,
            r"File too large .*1,048,576 bytes \(ulimit -f\), .* 4,000,000 .*Raise",
            errno.EFBIG,
        ),
    ],
)
def test_a_lack_of_inodes_and_a_limit_are_reported_before_anything_is_written(
    tmp_path, monkeypatch, capfd, inodes, limit, message, code
):
    state = {"kernel": np.zeros((1000, 1000), np.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        # No number of files at all: the disk has no fixed number.
        space = {"f_bavail": 10**9, "f_bfree": 10**9, "f_blocks": 10**9, "f_frsize": 4096}
        disk = types.SimpleNamespace(**space, f_files=1000 * bool(inodes), f_favail=inodes)
        monkeypatch.setattr(os, "statvfs", lambda path: disk)
        if limit:
            monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match=message) as caught:
            checkpoints.save(2, state)
    assert caught.value.errno == code
    assert capfd.readouterr().err == ""
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("late", "code", "message"),
    [
        (
            "OUT_OF_RANGE: Failed to write 9 bytes to file 6: File too large [os_error_code='27']\nmore",
            errno.EFBIG,
            r"File too large for a checkpoint \(there is none yet\)",
        ),
        (
            "UNKNOWN: Error writing a/0.0 in OCDBT database: Failed to fsync file [os_error_code='5']\nmore",
            errno.EIO,
            r"Input/output error: a checkpoint could not be written \(there is none yet\)\. Check the disk and rerun",
        ),
        (
            "FAILED_PRECONDITION: Failed to open lock file: Read-only file system [os_error_code='30']",
            errno.EROFS,
            "Read-only file system: a checkpoint could not be written",
        ),
    ],
)
def test_what_is_found_out_in_the_middle_is_one_line(late, code, message, tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(OSError, match=message) as caught,
        checkpoints._full_disk_in_words(),
    ):
        raise ValueError(late)
    assert caught.value.errno == code


def test_an_error_of_no_disk_stays_what_it_is(tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"^shapes differ$"),
        checkpoints._full_disk_in_words(),
    ):
        raise ValueError("shapes differ")


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "deleted": lambda file: file.unlink(),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "emptied": lambda file: file.write_bytes(b""),
    "flipped": flip,
}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """A run with checkpoints of the steps 3 and 5."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(3, state_of(3))
        checkpoints.save(5, state_of(5))
    return workdir


@pytest.mark.parametrize(
    "how", ["deleted", "flipped", *(pytest.param(how, marks=pytest.mark.slow) for how in ("truncated", "emptied"))]
)
def test_damage_is_harmless_or_reported_and_moved_aside(how, two_checkpoints, tmp_path):
    files = [f.relative_to(two_checkpoints) for f in two_checkpoints.rglob("5/**/*") if f.is_file()]
    assert len(files) > 10
    noticed = 0
    for number, name in enumerate(files):
        workdir, said = tmp_path / str(number), []
        shutil.copytree(two_checkpoints, workdir)
        before = (workdir / name).read_bytes()
        if not before:
            continue
        DAMAGES[how](workdir / name)
        with Checkpoints(workdir) as checkpoints:
            step, state = checkpoints.newest(state_of(0), warn=said.append)
            assert_same_bits(state, state_of(step))
            if step == 5:
                assert said == []
                continue
            noticed += 1
            (line,) = said
            assert line.startswith(f"The checkpoint of step 5 in {workdir}/checkpoints is damaged (")
            assert line.endswith("Using the previous checkpoint.")
            assert "\n" not in line
            assert checkpoints.latest_step == 3
            checkpoints.save(5, state_of(8))
        assert kept(workdir) == [3, 5]
        assert (workdir / "damaged" / "5").is_dir()
    # Some of Orbax's files are not needed to read the state.
    assert noticed >= 3


def test_changed_numbers_in_sound_files_are_noticed(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "5" / "_CHECKPOINT_METADATA"
    text = file.read_text()
    wrong = checksums(state_of(5))["params/encoder/kernel"]
    file.write_text(text.replace(f'"params/encoder/kernel": {wrong}', '"params/encoder/kernel": 1'))
    said = r"1 of its arrays differ from what was written, params/encoder/kernel among them"
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints, pytest.raises(InputError, match=said):
        checkpoints.restore(5, state_of(0))
    # Reopened, because Orbax reads an item in one way only.
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        with pytest.raises(InputError, match="params/encoder/kernel among them"):
            checkpoints.restore_variables(5, state_of(0).variables)
        assert_same_bits(checkpoints.restore_variables(3, state_of(0).variables), state_of(3).variables)


def test_without_an_intact_checkpoint_nothing_is_moved(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    for step in (3, 5):
        (tmp_path / "run" / "checkpoints" / str(step) / "state" / "manifest.ocdbt").unlink()
    said = r"None of the 2 checkpoints in .*step 5 .* is damaged .* start over"
    with Checkpoints(tmp_path / "run") as checkpoints, pytest.raises(InputError, match=said):
        checkpoints.newest(state_of(0), warn=pytest.fail)
    assert kept(tmp_path / "run") == [3, 5]


@pytest.mark.parametrize(
    "lack",
    [
        MemoryError("of this process"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EMFILE, "Too many open files"),
    ],
    ids=lambda lack: type(lack).__name__,
)
def test_a_lack_of_memory_or_permission_is_no_damage(lack, two_checkpoints, tmp_path, monkeypatch):
    shutil.copytree(two_checkpoints, tmp_path / "run")

    def lacking(*_, **__):
        raise lack

    with Checkpoints(tmp_path / "run") as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", lacking)
        with pytest.raises(type(lack), match=re.escape(str(lack))):
            checkpoints.newest(state_of(0), warn=pytest.fail)
    assert kept(tmp_path / "run") == [3, 5]


def test_a_checkpoint_without_checksums_is_accepted(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "5" / "_CHECKPOINT_METADATA"
    text = file.read_text()
    file.write_text(text[: text.index('"custom_metadata"')] + '"custom_metadata": {}}')
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.newest(state_of(0), warn=pytest.fail)[0] == 5


def test_checksums_are_those_of_the_bytes():
    state = {"a": {"b": np.arange(6, dtype=np.int16).reshape(2, 3)}, "c": jnp.float32(1)}
    assert checksums(state) == {
        "a/b": zlib.crc32(bytes([0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0])),
        "c": zlib.crc32(bytes([0, 0, 128, 63])),
    }


SMALL_DISK = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=3m tmpfs "$0" && exec "$@"']


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """Return a folder, and the start of a command that mounts a small disk there."""
    folder = tmp_path_factory.mktemp("disk")
    start = [*SMALL_DISK, str(folder)]
    if shutil.which("unshare") is None or subprocess.run([*start, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    return folder, start


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "full",
            r"No space left for a checkpoint \(the last one is of step 1\)\. Free space and rerun the same command",
        ),
        pytest.param(
            "fills",
            r"No space left for a checkpoint \(the last one is of step 1\)\. Free space and rerun the same command",
            marks=pytest.mark.slow,
        ),
        ("readonly", r"A checkpoint cannot be written \(the last one is of step 1\): .*/checkpoints"),
        ("full-metrics", r"No space left on device for metrics\. Fix that and rerun the same command.*metrics.jsonl"),
        pytest.param("readonly-metrics", r"Read-only file system: .*metrics.jsonl", marks=pytest.mark.slow),
    ],
)
def test_a_failing_disk_is_one_line_and_keeps_the_last_checkpoint(how, said, small_disk):
    folder, start = small_disk
    command = [sys.executable, "-m", "tests.helpers.failing_disk", how, str(folder)]
    left = f'{" ".join(command)}; echo "status $?"; ls {folder}/checkpoints'
    done = subprocess.run(
        [*start, "sh", "-c", left],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(f"error: {said}.*", line)
    assert done.stdout.splitlines()[:2] == ["status 1", "1"]
