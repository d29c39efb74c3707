"""Measure frames per second of the pipeline alone, the step alone and both together, and peak memory.

python -m benchmarks.throughput --config=configs/fine.py
python -m benchmarks.throughput --config=configs/fine.py:fetal_planes_db --config.data.path=DIR --steps=20
"""

import itertools
import resource
import statistics
import time
from collections.abc import Callable, Iterable

import jax
from absl import app, flags, logging

from awcl_jax.config import pretraining as configuration
from awcl_jax.config.file import define_config, parse_flags
from awcl_jax.pretrain import runner as pretrain
from awcl_jax.runtime import sharding
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.train import harness
from awcl_jax.train import initial_state as first_state

_CONFIG = define_config()
_STEPS = flags.DEFINE_integer("steps", 20, "Steps of each measurement.", lower_bound=2)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Repeats of each measurement.", lower_bound=1)
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    """Print a table."""
    del argv
    logging.set_verbosity(logging.ERROR)  # TFDS logs every dataset that it opens
    config, steps = _CONFIG.value, _STEPS.value
    config.train.steps = max(config.train.steps, steps + 1)
    mesh = sharding.make_mesh()
    configuration.validate(config, devices=mesh.size)
    setup = pretrain.set_up(config)
    cached = max(config.data.cache_mb, 1024)

    def read(cache_mb: float) -> Callable[[], None]:
        config.data.cache_mb = cache_mb
        fresh = pretrain.set_up(config)
        return lambda: _exhaust(itertools.islice(pretrain.batches_of(config, fresh), steps))

    step = harness.step_on(mesh, setup.programs.body, via=config.train.mapping)
    queue = pretrain.make_queue(config, setup.labels)
    state = first_state.initial_state(setup.programs.model, setup.programs.optimiser, seed=config.seed, queue=queue)
    state = sharding.replicate(state, mesh)
    batch = next(pretrain.batches_of(config, setup))
    state, _ = jax.block_until_ready(step(state, sharding.place_batch(batch.arrays, mesh)))

    def compute() -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = step(state, sharding.place_batch(batch.arrays, mesh))
        jax.block_until_ready(state)

    def both() -> None:
        nonlocal state
        for read_batch in itertools.islice(pretrain.batches_of(config, setup), steps):
            state, _ = step(state, sharding.place_batch(read_batch.arrays, mesh))
        jax.block_until_ready(state)

    frames = steps * config.sampler.batch_size
    print(
        f"{config.model.arch} of width {config.model.width_factor}, {config.augment.size} px, batches of "
        f"{config.sampler.batch_size} frames x 2 views, {mesh.size} {mesh.devices.flat[0].device_kind} device(s)\n"
        f"{steps} steps, median of {_REPEATS.value} runs (least, most)"
    )
    rows = {
        "pipeline, decoding every frame": read(0),
        "pipeline, frames kept in memory": read(cached),
        "step": compute,
        "pipeline and step": both,
    }
    for name, run in rows.items():
        run()  # fills caches
        speeds = sorted(frames / _seconds(run) for _ in range(_REPEATS.value))
        print(f"{name:32} {statistics.median(speeds):8.0f} frames/s ({speeds[0]:.0f}, {speeds[-1]:.0f})")
    print(f"{'peak memory of the process':32} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MB")


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _exhaust(items: Iterable[object]) -> None:
    for _ in items:
        pass


if __name__ == "__main__":
    with exit_on_bad_input():
        app.run(main, flags_parser=parse_flags)
