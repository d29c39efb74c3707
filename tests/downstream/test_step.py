"""The same numbers on 1, 2 and 8 devices; the losses by hand; a frozen encoder that does not change."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from awcl_jax.augment.options import Augmentation
from awcl_jax.downstream import step as downstream_step
from awcl_jax.downstream.losses import cross_entropy, dice_loss, overlap_sums
from awcl_jax.models import convnext
from awcl_jax.models.convnext import ConvNeXt
from awcl_jax.models.decoder import UNetDecoder
from awcl_jax.models.resnet import BasicBlock, ResNet
from awcl_jax.models.supervised import Classifier, Segmenter
from awcl_jax.models.vit import ViT, ViTOptions
from awcl_jax.runtime import sharding
from awcl_jax.train.optim import make_optimiser, train_all_but
from awcl_jax.train.state import TrainState
from tests.helpers.trees import difference

FRAMES, STEPS, CLASSES = 16, 2, 3
# SGD: Adam would hide a gradient that is too large by a factor.
SGD = optax.sgd(0.1, momentum=0.9)


ENCODERS = {
    "resnet": ResNet(stage_sizes=(1,), block=BasicBlock, width=8, axis_name=sharding.AXIS),
    "vit": ViT(depth=2, heads=1, grid=(2, 2), options=ViTOptions(patch=8, drop_path=0.3)),
    "convnext": ConvNeXt((1, 2), width=4, drop_path=0.3),
}
EDGES = {"convnext": 32}  # the smallest that it takes


def make_model(kind, *, frozen=False, encoder="resnet"):
    pyramid, encoder = encoder == "vit", ENCODERS[encoder]
    if kind == "classification":
        return Classifier(encoder, CLASSES, frozen)
    return Segmenter(encoder, UNetDecoder(CLASSES, width=8, axis_name=sharding.AXIS, pyramid=pyramid), frozen)


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        masks = np.zeros((FRAMES, 20, 20), np.uint8)
        # A structure in some rows only, so that devices differ in what they hold.
        masks[:5, 5:15, 6:14], masks[3:9, 2:6, 2:6] = 1, 2
        yield {
            "image": (rng.integers(0, 160, (FRAMES, 20, 20)) + 40 * masks).astype(np.uint8),
            "label": rng.integers(0, CLASSES, FRAMES).astype(np.int32),
            "mask": masks,
            "row": np.arange(FRAMES, dtype=np.int32),
        }


def take_steps(kind, devices=1, via="shard_map", *, frozen=False, optimiser=SGD, encoder="resnet"):
    """Return the state before, the state after a few steps, and their metrics."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    edge = EDGES.get(encoder, 16)
    model, objective = make_model(kind, frozen=frozen, encoder=encoder), getattr(downstream_step, kind)
    body = downstream_step.make_step(
        model,
        optimiser,
        objective(augmentation=Augmentation(size=edge, blur=None), seed=0),
        learning_rate=optax.constant_schedule(0.1),
    )
    step = sharding.map_step(body, mesh, via=via)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, edge, edge, 1)), train=False))(jax.random.key(0))
    before = jax.device_get(TrainState.create(variables, optimiser))
    state, reports = sharding.replicate(before, mesh), []
    for batch in batches():
        state, report = step(state, sharding.place_batch(batch, mesh))
        reports.append(jax.device_get(report))
    return before, jax.device_get(state), reports


@pytest.fixture(scope="module", autouse=True)
def smooth():
    """Replace ReLU by a smooth function: rounding may switch a ReLU, which changes the gradient."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn, "relu", nn.softplus)
        # A millionth of what a block computes would hide faults of it.
        patch.setattr(convnext, "_SCALE", 0.3)
        yield


@pytest.fixture(scope="module")
def on_one_device(smooth):
    """Return the results of `take_steps` by kind."""
    return functools.cache(take_steps)


@pytest.mark.parametrize(
    ("kind", "devices", "via"),
    [
        pytest.param("segmentation", 2, "shard_map", marks=pytest.mark.slow),
        pytest.param("segmentation", 8, "pmap", marks=pytest.mark.slow),
        ("classification", 8, "shard_map"),
        pytest.param("segmentation", 8, "shard_map", marks=pytest.mark.slow),
        pytest.param("segmentation", 1, "pmap", marks=pytest.mark.slow),
        pytest.param("classification", 2, "pmap", marks=pytest.mark.slow),
    ],
)
def test_any_number_of_devices_gives_the_same_numbers(on_one_device, kind, devices, via):
    _, state, reports = take_steps(kind, devices, via)
    _, expected_state, expected_reports = on_one_device(kind)
    assert difference(reports, expected_reports) < 1e-5
    assert difference(state.params, expected_state.params) < 1e-4
    assert difference(state.batch_stats, expected_state.batch_stats) < 1e-5
    assert difference(state.opt_state, expected_state.opt_state) < 1e-4


@pytest.mark.parametrize(
    ("kind", "encoder"),
    [
        pytest.param("classification", "vit", marks=pytest.mark.slow),
        pytest.param("classification", "convnext", marks=pytest.mark.release),
        pytest.param("segmentation", "vit", marks=pytest.mark.release),
        pytest.param("segmentation", "convnext", marks=pytest.mark.slow),
    ],
)
def test_other_encoders_have_the_same_numbers_on_any_devices(kind, encoder):
    before, state, reports = take_steps(kind, 8, encoder=encoder)
    _, expected_state, expected_reports = take_steps(kind, encoder=encoder)
    assert difference(reports, expected_reports) < 1e-4
    assert difference(state.params, expected_state.params) < 1e-4
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before.params, state.params)
    # The softmax of attention does not depend on a bias of the keys, which is part of one with those that move.
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize(
    ("kind", "encoder"),
    [
        pytest.param("classification", "vit", marks=pytest.mark.slow),
        pytest.param("segmentation", "vit", marks=pytest.mark.slow),
        pytest.param("classification", "convnext", marks=pytest.mark.slow),
        pytest.param("segmentation", "convnext", marks=pytest.mark.slow),
    ],
)
def test_other_frozen_encoders_stay_as_they_were(kind, encoder):
    adamw = make_optimiser("adamw", learning_rate=optax.constant_schedule(0.1), weight_decay=0.1)
    before, after, _ = take_steps(kind, frozen=True, optimiser=train_all_but(adamw, "encoder"), encoder=encoder)
    jax.tree.map(np.testing.assert_array_equal, after.params["encoder"], before.params["encoder"])
    assert difference(after.params, before.params) > 0


@pytest.mark.parametrize(
    ("kind", "module"),
    [("classification", "head"), pytest.param("segmentation", "decoder", marks=pytest.mark.slow)],
)
def test_steps_train_everything(on_one_device, kind, module):
    before, after, _ = on_one_device(kind)
    for part in ("encoder", module):
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before.params[part], after.params[part])
        assert min(jax.tree.leaves(moved)) > 0
    assert not np.array_equal(*(s.batch_stats["encoder"]["bn1"]["mean"] for s in (before, after)))


@pytest.mark.parametrize("kind", ["classification", pytest.param("segmentation", marks=pytest.mark.slow)])
def test_a_frozen_encoder_stays_as_it_was(kind):
    # Weight decay and momentum move a parameter without a gradient, unless it is excluded.
    adamw = make_optimiser("adamw", learning_rate=optax.constant_schedule(0.1), weight_decay=0.1, clip_norm=1.0)
    before, after, reports = take_steps(kind, frozen=True, optimiser=train_all_but(adamw, "encoder"))
    for tree in ("params", "batch_stats"):
        for old, new in zip(*(jax.tree.leaves(getattr(s, tree)["encoder"]) for s in (before, after)), strict=True):
            np.testing.assert_array_equal(old, new)
    trained = "head" if kind == "classification" else "decoder"
    kernels = [leaf for leaf in jax.tree.leaves(before.params[trained]) if leaf.ndim > 1]
    moved = [leaf for leaf in jax.tree.leaves(after.params[trained]) if leaf.ndim > 1]
    assert all(not np.array_equal(old, new) for old, new in zip(kernels, moved, strict=True))
    assert all(report["gradient_norm"] > 0 for report in reports)


# Losses -------------------------------------------------------------------------------------------------------------


def slow_dice_loss(logits, masks):
    """Compute the formula pixel by pixel in float64."""
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    dices = []
    for c in range(1, logits.shape[-1]):
        both = predicted = true = 0.0
        for index in np.ndindex(masks.shape):
            both += p[(*index, c)] * (masks[index] == c)
            predicted += p[(*index, c)]
            true += masks[index] == c
        if true:
            dices.append(2 * both / (predicted + true))
    return 1 - np.mean(dices) if dices else 0.0


@jax.jit
def dice(logits, masks):
    return dice_loss(overlap_sums(logits, masks))


dice_and_gradient = jax.jit(jax.value_and_grad(dice))


@pytest.mark.parametrize("classes_shown", [(), (1,), (1, 2)])
def test_dice_loss_is_the_formula(classes_shown):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 5, 4, 4)).astype(np.float32)
    masks = rng.choice([0, *classes_shown], (2, 5, 4))
    found, gradient = dice_and_gradient(logits, masks)
    assert found == pytest.approx(slow_dice_loss(logits, masks), rel=1e-5, abs=1e-7)
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max() > 0) == bool(classes_shown)


def test_losses_by_hand():
    # Uniform logits over 2 classes: p = 1/2. Of 8 pixels 2 are class 1: Dice 2 (2/2) / (8/2 + 2) = 1/3.
    masks = np.array([[[1, 1, 0, 0], [0, 0, 0, 0]]], np.uint8)
    logits = np.zeros((1, 2, 4, 2), np.float32)
    assert dice(logits, masks) == pytest.approx(2 / 3, rel=1e-6)
    assert jax.jit(cross_entropy)(logits, masks) == pytest.approx(np.log(2), rel=1e-6)
    sure = 50 * np.eye(2, dtype=np.float32)[masks]
    assert dice(sure, masks) == pytest.approx(0, abs=1e-6)
