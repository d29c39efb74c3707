"""The same numbers on 1, 2 and 8 devices, by `shard_map` and by `pmap`, and in two processes."""

import contextlib
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from awcl_jax.augment.options import Augmentation
from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.losses.awcl import LossOptions
from awcl_jax.models import convnext
from awcl_jax.models.convnext import ConvNeXt
from awcl_jax.models.pretraining import ContrastiveModel, Projection
from awcl_jax.models.resnet import BasicBlock, ResNet
from awcl_jax.models.vit import ViT, ViTOptions
from awcl_jax.pretrain.step import make_step
from awcl_jax.runtime import sharding
from awcl_jax.train.momentum import Queue
from awcl_jax.train.state import TrainState
from tests.helpers.trees import difference

FRAMES, STEPS = 16, 3
# SGD: Adam would hide a gradient that is too large by a factor.
OPTIMISER = optax.sgd(0.1, momentum=0.9)


@contextlib.contextmanager
def exact():
    """Compute in float64 what the product computes in float32.

    In float32 sums depend on the number of devices in their last bits, which may switch a ReLU or a maximum. A bound
    that allows this would hide faults.
    """
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jnp, "float32", jnp.float64)
        # A millionth of what a block computes would hide faults of it.
        patch.setattr(convnext, "_SCALE", 0.3)
        yield


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        yield {
            "image": rng.integers(0, 256, (FRAMES, 40, 40), np.uint8),
            "label": rng.choice([UNLABELLED, 0, 1, 2], FRAMES).astype(np.int32),
            "row": np.arange(FRAMES, dtype=np.int32),
            "frame": np.tile(rng.integers(0, 40, (FRAMES, 1), np.int32), 2),
        }


def fine_and_coarse(batch):
    """Return the batch with two labels per frame."""
    label = batch["label"]
    return batch | {"label": np.stack([label, np.where(label < 0, label, 10 + label // 2)], axis=1)}


ENCODERS = {
    "resnet": ResNet(stage_sizes=(1, 1), block=BasicBlock, width=8, axis_name=sharding.AXIS),
    "vit": ViT(depth=2, heads=1, grid=(2, 2), options=ViTOptions(patch=16, registers=1, drop_path=0.3)),
    "rotary vit": ViT(depth=2, heads=1, grid=(2, 2), options=ViTOptions(patch=16, registers=1, rotary=True)),
    "convnext": ConvNeXt((1, 1), width=4, drop_path=0.3),
}


def take_steps(
    devices,
    via="shard_map",
    *,
    encoder="resnet",
    rows=slice(None),
    both=False,
    queue=0,
    chunks=1,
    momentum=None,
    **loss,
):
    """Return state, losses and gradient norms after a few steps on the first `devices` devices."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    model = ContrastiveModel(ENCODERS[encoder].clone(dtype=jnp.float32), Projection(embedding=16))
    body = make_step(
        model,
        OPTIMISER,
        learning_rate=optax.constant_schedule(0.1),
        augmentation=Augmentation(size=32),
        loss=LossOptions(temperature=0.1, **loss),
        chunks=chunks,
        momentum=momentum,
        seed=0,
    )
    step = sharding.map_step(body, mesh, via=via)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 1)), train=False))(jax.random.key(0))
    variables = jax.tree.map(lambda x: x.astype(jnp.float32), variables)  # float64 if it stands for it
    keys = Queue.empty(queue, 16, columns=(2,) if both else ()) if queue else None
    state = sharding.replicate(TrainState.create(variables, OPTIMISER, queue=keys), mesh)
    reports = []
    for batch in batches():
        local = {name: array[rows] for name, array in (fine_and_coarse(batch) if both else batch).items()}
        state, report = step(state, sharding.place_batch(local, mesh))
        reports.append(jax.device_get(report))
    return jax.device_get(state), reports


def test_a_step_compiled_before_its_state_is_not_compiled_again(compiled):
    traced = []

    def body(state, batch):
        traced.append(state)
        return state + sharding.mean(batch["row"].sum()), {}

    mesh = sharding.make_mesh(jax.devices()[:2])
    step = sharding.map_step(body, mesh)
    batch = sharding.place_batch({"row": np.arange(FRAMES, dtype=np.float32)}, mesh)
    state = np.zeros(3, np.float32)
    sharding.compile_step(step, sharding.replicated_shapes(state, mesh), batch)
    assert (len(traced), compiled.count("jit(body)")) == (1, 1)
    step(sharding.replicate(state, mesh), batch)
    assert (len(traced), compiled.count("jit(body)")) == (1, 1)


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with exact():
        yield


@pytest.fixture(scope="module")
def on_one_device(in_float64):
    return take_steps(1)


@pytest.mark.parametrize(
    ("devices", "via"),
    [
        (8, "pmap"),
        pytest.param(2, "shard_map", marks=pytest.mark.slow),
        pytest.param(1, "pmap", marks=pytest.mark.slow),
        pytest.param(8, "shard_map", marks=pytest.mark.slow),
    ],
)
def test_any_number_of_devices_gives_the_same_numbers(on_one_device, devices, via):
    state, reports = take_steps(devices, via)
    expected_state, expected_reports = on_one_device
    assert difference(reports, expected_reports) < 1e-9
    assert difference(state.params, expected_state.params) < 1e-9
    assert difference(state.batch_stats, expected_state.batch_stats) < 1e-9
    assert difference(state.opt_state, expected_state.opt_state) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_blocks_give_the_same_numbers(on_one_device, devices):
    state, reports = take_steps(devices, block_size=3)
    assert difference(reports, on_one_device[1]) < 2e-4
    assert difference(state.params, on_one_device[0].params) < 2e-4


@pytest.mark.parametrize(
    ("devices", "via"),
    [
        pytest.param(1, "shard_map", marks=pytest.mark.slow),
        pytest.param(2, "pmap", marks=pytest.mark.slow),
        pytest.param(8, "shard_map", marks=pytest.mark.slow),
    ],
)
def test_the_ring_gives_the_same_numbers(on_one_device, devices, via):
    state, reports = take_steps(devices, via, exchange="ring", block_size=3)
    assert difference(reports, on_one_device[1]) < 2e-4
    assert difference(state.params, on_one_device[0].params) < 2e-4


METHODS = {
    "fine and coarse": {"both": True, "group_weights": (0.3, 0.7)},
    "in chunks": {"chunks": 4},
    "a queue that is not full": {"queue": 3 * FRAMES, "momentum": 0.9},
    "a full queue, in chunks, of fine and coarse": {
        "queue": 2 * FRAMES,
        "momentum": 0.9,
        "both": True,
        "chunks": 2,
    },
}


@pytest.mark.parametrize(
    ("method", "devices", "more"),
    [
        pytest.param("fine and coarse", 4, {"exchange": "ring"}, marks=pytest.mark.slow),
        pytest.param("in chunks", 4, {}, marks=pytest.mark.slow),
        pytest.param("a queue that is not full", 4, {}, marks=pytest.mark.slow),
        pytest.param("a full queue, in chunks, of fine and coarse", 4, {"via": "pmap"}, marks=pytest.mark.slow),
        pytest.param("a full queue, in chunks, of fine and coarse", 2, {}, marks=pytest.mark.release),
        pytest.param("in chunks", 2, {"via": "pmap", "exchange": "ring"}, marks=pytest.mark.slow),
    ],
)
def test_every_method_gives_the_same_numbers_on_any_devices(method, devices, more):
    expected_state, expected_reports = take_steps(1, **METHODS[method])
    state, reports = take_steps(devices, **METHODS[method], **more)
    assert difference(reports, expected_reports) < 2e-4
    assert difference(state.params, expected_state.params) < 2e-4
    assert difference(state.batch_stats, expected_state.batch_stats) < 2e-4
    if "queue" in METHODS[method]:
        assert difference(state.momentum, expected_state.momentum) < 2e-4


@pytest.fixture(scope="module")
def by_encoder(in_float64):
    """Return state and reports of one device by the name of the encoder."""
    return functools.cache(lambda encoder: take_steps(1, encoder=encoder))


@pytest.mark.parametrize(
    ("encoder", "devices", "more"),
    [
        pytest.param("vit", 8, {}, marks=pytest.mark.slow),
        pytest.param("vit", 1, {"chunks": 4}, marks=pytest.mark.slow),
        pytest.param("vit", 4, {"chunks": 2, "exchange": "ring", "via": "pmap"}, marks=pytest.mark.slow),
        pytest.param("rotary vit", 1, {"chunks": 4}, marks=pytest.mark.slow),
        pytest.param("convnext", 4, {"chunks": 2, "via": "pmap"}, marks=pytest.mark.slow),
        pytest.param("vit", 8, {"via": "pmap"}, marks=pytest.mark.release),
        pytest.param("vit", 2, {"exchange": "ring", "block_size": 3}, marks=pytest.mark.release),
        pytest.param("vit", 4, {"chunks": 4}, marks=pytest.mark.release),
        pytest.param("rotary vit", 8, {}, marks=pytest.mark.release),
        pytest.param("convnext", 8, {}, marks=pytest.mark.release),
    ],
)
def test_an_encoder_without_batch_norm_has_the_same_numbers_on_any_devices_and_in_chunks(
    by_encoder, encoder, devices, more
):
    # Chunks are exact, too: each picture skips the same blocks in both passes.
    state, reports = take_steps(devices, encoder=encoder, **more)
    expected_state, expected_reports = by_encoder(encoder)
    assert difference(reports, expected_reports) < 1e-4
    assert difference(state.params, expected_state.params) < 1e-4


@pytest.mark.parametrize(
    ("encoder", "devices"),
    [
        pytest.param("vit", 4, marks=pytest.mark.slow),
        pytest.param("vit", 1, marks=pytest.mark.release),
        pytest.param("convnext", 4, marks=pytest.mark.release),
    ],
)
def test_the_queue_of_an_encoder_without_batch_norm_has_the_same_numbers_on_any_devices_and_in_chunks(encoder, devices):
    expected_state, expected_reports = take_steps(1, encoder=encoder, queue=32, momentum=0.9)
    state, reports = take_steps(devices, encoder=encoder, queue=32, momentum=0.9, chunks=2)
    assert difference(reports, expected_reports) < 1e-4
    assert difference(state.params, expected_state.params) < 1e-4
    assert difference(state.momentum, expected_state.momentum) < 1e-4


@pytest.mark.slow
def test_without_the_gather_the_numbers_depend_on_the_devices(on_one_device):
    _, reports = take_steps(8, exchange="none")
    # Each device of 2 frames contrasts with 3 other rows instead of 31: log(31 / 3) = 2.3 less to lose.
    assert on_one_device[1][0]["loss"] - reports[0]["loss"] > 1


def test_steps_change_the_state_and_count_on(on_one_device):
    state, reports = on_one_device
    assert state.step == STEPS
    assert len({float(report["loss"]) for report in reports}) == STEPS
    assert difference(state.batch_stats, jax.tree.map(np.zeros_like, state.batch_stats)) > 0


_PROCESS = """
import json
import sys
import jax
process = int(sys.argv[1])
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, process)
import numpy as np
from tests.pretrain import test_topology as t
share = t.FRAMES // 2
with t.exact():
    state, reports = t.take_steps(2, rows=slice(process * share, (process + 1) * share), **json.loads(sys.argv[4]))
if process == 0:
    np.savez(sys.argv[3], *jax.tree.leaves((state, reports)))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    "options", [{}, {"exchange": "ring"}, {"queue": 32, "momentum": 0.9, "chunks": 2}, {"encoder": "vit"}]
)
def test_two_processes_give_the_same_numbers(options, tmp_path, unused_port):
    out = tmp_path / "numbers.npz"
    root = Path(__file__).parents[2]
    arguments = str(unused_port), str(out), json.dumps(options)
    commands = [[sys.executable, "-c", _PROCESS, str(process), *arguments] for process in (0, 1)]
    running = [subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) for command in commands]
    outputs = [process.communicate(timeout=240)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    with np.load(out) as numbers:
        expected = jax.tree.leaves(take_steps(1, **options))
        assert difference([numbers[name] for name in numbers.files], expected) < 5e-3
