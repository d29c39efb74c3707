"""Encoding in chunks against encoding at once."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from awcl_jax.augment.options import Augmentation
from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.losses.awcl import LossOptions
from awcl_jax.models.pretraining import ContrastiveModel, Projection
from awcl_jax.models.resnet import BasicBlock, ResNet
from awcl_jax.pretrain.step import encode_in_chunks, make_step
from awcl_jax.runtime import sharding
from awcl_jax.train.momentum import Queue
from awcl_jax.train.state import TrainState
from tests.helpers.tiny_model import Tiny

FRAMES = 12


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (FRAMES, 10, 10), np.uint8),
        "label": rng.choice([UNLABELLED, 0, 1], FRAMES).astype(np.int32),
        "row": np.arange(FRAMES, dtype=np.int32),
    }


def initialised(model, size: int = 8):
    return jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 1)), train=False))()


@functools.cache
def one_step(model, devices: int, chunks: int):
    optimiser = optax.sgd(1.0)
    body = make_step(
        model,
        optimiser,
        learning_rate=optax.constant_schedule(1.0),
        augmentation=Augmentation(size=8),
        loss=LossOptions(temperature=0.1),
        chunks=chunks,
        seed=0,
    )
    mesh = sharding.make_mesh(jax.devices()[:devices])
    state = sharding.replicate(TrainState.create(initialised(model), optimiser), mesh)
    return jax.device_get(sharding.map_step(body, mesh)(state, sharding.place_batch(batch(), mesh)))


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(("devices", "chunks"), [(1, 2), (1, 12), (2, 3), (4, 3)])
def test_without_batch_norm_chunks_are_exact(devices, chunks):
    state, report = one_step(Tiny(), devices, chunks)
    wanted_state, wanted_report = one_step(Tiny(), 1, 1)
    for name, value in wanted_report.items():
        np.testing.assert_allclose(report[name], value, rtol=2e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), state.params, wanted_state.params)


@pytest.mark.slow
def test_beams_of_fans_are_the_same_on_any_devices():
    rng = np.random.default_rng(0)
    sides = np.sort(rng.uniform(-0.8, 0.8, (16, 2)), axis=1)
    fans = np.concatenate([rng.uniform(-9, 3, (16, 2)), rng.uniform(0.5, 2, (16, 2)), sides], 1).astype(np.float32)
    fans[::3] = 0  # unknown
    frames = {"image": rng.integers(0, 256, (16, 10, 10), np.uint8), "label": np.arange(16, dtype=np.int32) % 3}
    given = frames | {"row": np.arange(16, dtype=np.int32), "fans": fans}
    options = Augmentation(size=8, shadow_probability=1.0, haze=(-30.0, -20.0), haze_probability=1.0, beams="fan")

    def gradient(devices: int, via: str, batch: dict[str, np.ndarray]) -> float:
        settings = {"learning_rate": optax.constant_schedule(1.0), "loss": LossOptions(temperature=0.1), "seed": 0}
        body = make_step(Tiny(), optax.sgd(1.0), augmentation=options, **settings)
        mesh = sharding.make_mesh(jax.devices()[:devices])
        state = sharding.replicate(TrainState.create(initialised(Tiny()), optax.sgd(1.0)), mesh)
        _, report = sharding.map_step(body, mesh, via=via)(state, sharding.place_batch(batch, mesh))
        return float(report["gradient_norm"])

    one = gradient(1, "shard_map", given)
    assert gradient(8, "shard_map", given) == pytest.approx(one, rel=1e-5)
    assert gradient(8, "pmap", given) == pytest.approx(one, rel=1e-5)
    assert gradient(1, "shard_map", given | {"fans": np.roll(fans, 1, axis=0)}) != pytest.approx(one, rel=1e-3)


def resnet() -> ContrastiveModel:
    encoder = ResNet(stage_sizes=(1,), block=BasicBlock, width=4)
    return ContrastiveModel(encoder, Projection(embedding=6))


@pytest.mark.slow
def test_with_batch_norm_a_chunk_is_a_batch_of_every_other_row():
    model, views = resnet(), jax.random.normal(jax.random.key(1), (2, 6, 8, 8, 1))
    variables = initialised(model)
    params, statistics = variables["params"], variables["batch_stats"]

    def weighted(params, chunks):
        mesh = sharding.make_mesh(jax.devices()[:1])

        def body(params, views):
            z, updated = encode_in_chunks(model, params, statistics, views[0], chunks)
            return (z * jnp.arange(z.size).reshape(z.shape)).sum(), updated

        # The views' first axis is that of the device.
        grad_fn = jax.value_and_grad(body, has_aux=True)

        def step(params, views):
            (value, updated), gradient = grad_fn(params, views)
            return params, sharding.mean((value, updated, gradient))

        return sharding.map_step(step, mesh, donate=False)(params, views[None])[1]

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def by_hand(params):
        """Normalise rows 0, 3 / 1, 4 / 2, 5 of both views separately."""
        weights = jnp.arange(2 * 6 * 6).reshape(2, 6, 6)
        value, found = 0.0, []
        for chunk in range(3):
            part = views[:, chunk::3].reshape(4, 8, 8, 1)
            z, updated = model.apply(
                {"params": params, "batch_stats": statistics}, part, train=True, mutable=["batch_stats"]
            )
            value += (z.reshape(2, 2, 6) * weights[:, chunk::3]).sum()
            found.append(updated["batch_stats"])
        return value, jax.tree.map(lambda *three: sum(three) / 3, *found)

    value, updated, gradient = weighted(params, 3)
    (wanted, wanted_updated), wanted_gradient = by_hand(params)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)  # noqa: E731
    jax.tree.map(close, updated, wanted_updated)
    jax.tree.map(close, gradient, wanted_gradient)


def activation_bytes(chunks: int = 1) -> int:
    """Return the memory of a step of 64 frames beside its arguments and results."""
    encoder = ResNet(stage_sizes=(4, 2), block=BasicBlock, width=8, axis_name=sharding.AXIS)
    model, optimiser = ContrastiveModel(encoder, Projection(embedding=6)), optax.sgd(1.0)
    body = make_step(
        model,
        optimiser,
        learning_rate=optax.constant_schedule(1.0),
        augmentation=Augmentation(size=32),
        loss=LossOptions(temperature=0.1),
        chunks=chunks,
        seed=0,
    )
    mesh = sharding.make_mesh(jax.devices()[:1])
    state = jax.eval_shape(lambda: TrainState.create(initialised(model, 32), optimiser))
    arrays = {
        "image": np.zeros((64, 32, 32), np.uint8),
        "label": np.zeros(64, np.int32),
        "row": np.arange(64, dtype=np.int32),
    }
    lowered = sharding.map_step(body, mesh).lower(state, arrays)
    # Memory is planned before machine code is generated, so that code need not be fast.
    return lowered.compile({"xla_backend_optimization_level": 0}).memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_chunks_take_less_memory():
    assert activation_bytes(8) < 0.5 * activation_bytes(1)


@pytest.mark.parametrize("momentum", [pytest.param(None, marks=pytest.mark.slow), 0.5])
def test_a_step_that_is_not_finite_changes_only_the_step_count(momentum):
    model, optimiser = Tiny(), optax.adam(0.1)
    mesh = sharding.make_mesh(jax.devices()[:2])
    variables = initialised(model)
    z = jax.eval_shape(lambda: model.apply(variables, jnp.zeros((1, 8, 8, 1)), train=False))
    queue = None if momentum is None else Queue.empty(FRAMES, z.shape[-1])
    state = jax.device_get(TrainState.create(variables, optimiser, queue=queue))
    frames = {"frame": np.tile(np.arange(FRAMES, dtype=np.int32)[:, None], 2)}

    body = make_step(
        model,
        optimiser,
        learning_rate=optax.constant_schedule(0.1),
        augmentation=Augmentation.off(size=8),
        loss=LossOptions(temperature=0.1),
        momentum=momentum,
        seed=0,
    )
    step = sharding.map_step(body, mesh)

    def after(state):
        placed = sharding.place_batch(batch() | frames, mesh)
        return jax.device_get(step(sharding.replicate(state, mesh), placed))

    def spoilt(leaf):
        leaf = leaf.copy()
        leaf.flat[0] = np.nan
        return leaf

    # One bad number in a parameter that all embeddings depend on makes every other gradient not finite.
    broken = state.replace(params=jax.tree.map(spoilt, state.params))
    left_out, report = after(broken)
    assert not np.isfinite(report["loss"])
    assert left_out.step == 1
    jax.tree.map(np.testing.assert_array_equal, left_out.replace(step=state.step), broken)
    applied, _ = after(state)
    assert not np.array_equal(jax.tree.leaves(applied.params)[0], jax.tree.leaves(state.params)[0])


def test_of_blocks_that_are_computed_again_only_inputs_are_kept():
    # What the gradient is given. On a CPU, XLA merges the second computation with the first.
    x = jnp.zeros((4, 32, 32, 1))

    def kept_bytes(remat):
        model = ResNet(stage_sizes=(4, 4), block=BasicBlock, width=8, remat=remat)
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=True))

        def pull_back(params, batch_stats):
            def features(params):
                given = {"params": params, "batch_stats": batch_stats}
                return model.apply(given, x, train=True, mutable=["batch_stats"])[0]

            return jax.vjp(features, params)[1]

        kept = jax.eval_shape(pull_back, variables["params"], variables["batch_stats"])
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))

    assert kept_bytes(remat=True) < 0.5 * kept_bytes(remat=False)


def test_blocks_that_are_computed_again_have_the_same_gradient():
    x = jax.random.normal(jax.random.key(0), (4, 32, 32, 1))
    models = [ResNet(stage_sizes=(1, 1), block=BasicBlock, width=4, remat=remat) for remat in (False, True)]
    variables = initialised(models[0], 32)

    def gradient(model):
        def loss(params):
            features, updated = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return (features**2).sum(), updated

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    kept, again = map(gradient, models)
    chex.assert_trees_all_close(again, kept, rtol=1e-5, atol=1e-6)
