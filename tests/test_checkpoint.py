"""Checkpoints of a run."""

import errno
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from awcl_jax.checkpoint import Checkpoints
from awcl_jax.train_state import TrainState

OPTIMISER = optax.adamw(1e-2)


def state_of(seed: int, steps: int = 1) -> TrainState:
    """A state whose optimiser has seen some gradients, in several types of number."""
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


def test_a_run_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path):
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


def test_without_scores_the_two_latest_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state_of(step))
        assert checkpoints.best_step is None
    assert kept(tmp_path) == [3, 4]


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


def test_who_only_reads_leaves_what_the_run_is_writing_alone(tmp_path):
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
        "from awcl_jax import sharding\n"
        "from awcl_jax.checkpoint import Checkpoints\n"
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


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    state = {"kernel": np.zeros((1000, 1000), np.float32)}
    usage = shutil.disk_usage(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4_000_000))
        with pytest.raises(OSError, match=r"No space left .* the last one is of step 1; make room") as told:
            checkpoints.save(2, state)
    assert told.value.errno == errno.ENOSPC
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["1"]
