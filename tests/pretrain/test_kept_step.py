"""A run whose programs were compiled before: the same numbers, and nothing compiled again."""

import json
import os
import subprocess
import sys

import pytest

from awcl_jax.config.fields import to_dict
from awcl_jax.train.metrics import METRICS_FILE
from tests.helpers.configurations import tiny

STEPS = 3
OPTIONS = [f"--config.train.steps={STEPS}", "--config.train.log_every=1", "--config.optim.warmup_steps=1"]
MEASURED = {"frames_per_second", "data_wait_share"}


def metrics_of(workdir, cache, **environment):
    """Run the command in a process of its own; return its metrics but for speed, and its state's numbers."""
    command = [sys.executable, "-m", "awcl_jax.main", "--config=configs/fine.py:tiny", f"--workdir={workdir}", *OPTIONS]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)} | environment
    subprocess.run(command, env=environment, capture_output=True, check=True)
    lines = [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


@pytest.mark.slow
def test_first_and_second_start_have_the_numbers_of_a_run_without_a_cache(tmp_path):
    cache = tmp_path / "cache"
    without = metrics_of(tmp_path / "without", cache, JAX_ENABLE_COMPILATION_CACHE="false")
    assert not (cache / "whole").exists()
    first = metrics_of(tmp_path / "first", cache)
    kept = {file.name: file.stat().st_ino for file in (cache / "whole").iterdir()}
    assert len(kept) == 3  # the step, and two for its first state
    second = metrics_of(tmp_path / "second", cache)
    assert {file.name: file.stat().st_ino for file in (cache / "whole").iterdir()} == kept
    assert without == first == second


@pytest.mark.slow
def test_the_step_is_compiled_by_another_process_and_found_under_the_same_name(tmp_path, phantom):
    """The test's process has eight devices and settings of its own, so here a new one asks."""
    config = tiny(phantom)
    program = """
import json, sys
from awcl_jax.config.fields import from_dict, to_dict
from awcl_jax.config.pretraining import default_config
from awcl_jax.pretrain import runner
from awcl_jax.runtime import cache, kept_programs, memory, sharding
memory.free_before_the_next()
cache.keep_compiled_programs()
config = from_dict(json.loads(sys.argv[1]), default_config())
setup = runner.set_up(config)
batch = next(runner.batches_of(config, setup))
mesh = sharding.make_mesh()
name = sharding.step_name(setup.programs.name, sharding.place_batch(batch.arrays, mesh))
assert kept_programs.load(name, list(mesh.devices.flat)) is None
runner.compile_aside(config, batch, granularities=setup.labels.ndim)
assert kept_programs.load(name, list(mesh.devices.flat)) is not None
"""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program, json.dumps(to_dict(config))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
