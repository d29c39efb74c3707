"""ConvNeXts: the network by loops in float64, its maps, and what of it learns."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.models.convnext import ConvNeXt, frozen_parameters, layer_count, layer_of, make_convnext
from awcl_jax.models.shapes import variable_shapes
from awcl_jax.runtime.errors import InputError


def tiny(stages=(1, 2), **changes):
    return ConvNeXt(stages, **{"width": 4, **changes})


def random_params(model, seed=0):
    """All parameters random, also those that begin as zeros or ones."""
    shapes = variable_shapes(model, 32, 1)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes["params"])


def frames(count=2, rows=32, columns=32, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, rows, columns, 1)), jnp.float32)


def applied(model, params, x, *, train=False, method=None, **more):
    return jax.jit(lambda params, x: model.apply({"params": params}, x, train=train, method=method, **more))(params, x)


def layer_norm(x, part):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * part["scale"] + part["bias"]


def patches(x, part):
    p = len(part["kernel"])
    rows, columns = x.shape[0] // p, x.shape[1] // p
    found = np.empty((rows, columns, part["kernel"].shape[-1]))
    for i, j in np.ndindex(rows, columns):
        found[i, j] = np.einsum("hwc,hwco->o", x[i * p : (i + 1) * p, j * p : (j + 1) * p], part["kernel"])
    return found + part["bias"]


def depthwise(x, part):
    padded = np.pad(x, ((3, 3), (3, 3), (0, 0)))
    found = np.empty_like(x)
    for i, j in np.ndindex(x.shape[:2]):
        found[i, j] = (padded[i : i + 7, j : j + 7] * part["kernel"][:, :, 0]).sum(axis=(0, 1))
    return found + part["bias"]


def by_hand(params, picture, stages, *, second):
    """Return the maps of one picture, and its features, in float64 (Liu et al. 2022, Fig. 4; Woo et al. 2023)."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = layer_norm(patches(np.asarray(picture, np.float64), p["stem_conv"]), p["stem_norm"])
    maps = []
    for stage, blocks in enumerate(stages):
        if stage:
            x = patches(layer_norm(x, p[f"stage{stage}_down_norm"]), p[f"stage{stage}_down_conv"])
        for block in (p[f"stage{stage}_block{i}"] for i in range(blocks)):
            y = layer_norm(depthwise(x, block["conv_dw"]), block["norm"])
            y = y @ block["fc1"]["kernel"] + block["fc1"]["bias"]
            y = y * (1 + np.vectorize(math.erf)(y / np.sqrt(2))) / 2
            if second:
                response = np.sqrt((y**2).sum(axis=(0, 1)))
                y = y + block["grn"]["scale"] * y * response / (response.mean() + 1e-6) + block["grn"]["bias"]
            y = y @ block["fc2"]["kernel"] + block["fc2"]["bias"]
            x = x + (y if second else y * block["gamma"])
        maps.append(x)
    return maps, layer_norm(x.mean(axis=(0, 1)), p["norm"])


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    ("second", "rows", "columns"), [(False, 45, 32), pytest.param(True, 32, 38, marks=pytest.mark.slow)]
)
def test_features_and_maps_are_those_of_the_formula(second, rows, columns):
    # 45 rows are 11 of patches and then 5: what is beyond the last patch is left out.
    model = tiny(second=second)
    params, x = random_params(model), frames(1, rows, columns)
    expected, features = by_hand(params, np.asarray(x[0]), (1, 2), second=second)
    np.testing.assert_allclose(applied(model, params, x)[0], features, rtol=1e-3, atol=1e-4)
    fine, coarse = applied(model, params, x, method="maps")
    np.testing.assert_allclose(fine[0], expected[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(coarse[0], layer_norm(expected[1], params["norm"]), rtol=1e-3, atol=1e-3)


def test_maps_have_a_4th_to_a_32nd_of_the_edges():
    model = tiny((1, 1, 1, 1))
    shapes = jax.eval_shape(
        lambda: model.apply({"params": random_params(model)}, frames(2, 64, 96), train=False, method="maps")
    )
    assert [found.shape for found in shapes] == [(2, 16, 24, 4), (2, 8, 12, 8), (2, 4, 6, 16), (2, 2, 3, 32)]


@functools.cache
def gradient(**options):
    model, params = tiny(**options), random_params(tiny())

    def loss(params):
        maps = model.apply({"params": params}, frames(), train=True, method="maps")
        return sum((found.astype(jnp.float32) ** 2).sum() for found in maps)

    return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        pytest.param({"train_blocks": 1}, {"stage1_block1", "norm"}, marks=pytest.mark.slow),
        pytest.param({"train_blocks": 2}, {"stage1_block0", "stage1_block1", "norm"}, marks=pytest.mark.slow),
        pytest.param(
            {"train_blocks": 3},
            {"stage0_block0", "stage1_down_norm", "stage1_down_conv", "stage1_block0", "stage1_block1", "norm"},
            marks=pytest.mark.slow,
        ),
        pytest.param({"freeze_patches": True}, None, marks=pytest.mark.slow),
    ],
)
def test_what_gets_a_gradient_is_what_the_optimiser_moves(options, trained):
    full, part = gradient(), gradient(**options)
    trained = full.keys() - {"stem_conv"} if trained is None else trained
    frozen = frozen_parameters(tiny(**options))
    for name in full:
        assert any(np.any(leaf) for leaf in jax.tree.leaves(part[name])) == (name in trained), name
        assert frozen(("encoder", name, "kernel")) == (name not in trained), name
    assert not frozen(("projection", "hidden", "kernel"))
    # The maps of earlier blocks, too, are cut off; what learns has the gradient of the whole.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), part["norm"], full["norm"])


def test_layers_are_those_of_the_published_code():
    # get_num_layer_for_convnext of facebookresearch/ConvNeXt: 12 layers of ConvNeXt-S, and of T as many fewer as
    # blocks in its third stage.
    def of(model, *names):
        return [layer_of(("encoder", name, "kernel"), model) for name in names]

    small, tiny = (make_convnext(f"convnext_{size}", size=32) for size in ("small", "tiny"))
    assert (layer_count(small), layer_count(tiny)) == (12, 6)
    assert of(small, "stem_conv", "stem_norm", "stage0_block2", "stage1_down_conv", "stage1_block0") == [0, 0, 1, 2, 2]
    assert of(small, "stage2_down_norm", "stage2_block2", "stage2_block3", "stage2_block26") == [3, 3, 4, 11]
    assert of(small, "stage3_down_norm", "stage3_block0", "norm") == [12, 12, 13]
    assert of(tiny, "stage2_block8", "stage3_down_conv", "stage3_block2", "norm") == [5, 6, 6, 7]
    assert layer_of(("projection", "hidden", "kernel"), tiny) == 7


def test_skipped_blocks_are_drawn_by_the_picture():
    model = tiny(drop_path=0.9)
    params, keys = random_params(model), jax.random.split(jax.random.key(0), 64)
    picture = jnp.repeat(frames(1), 64, axis=0)
    features = np.asarray(applied(model, params, picture, train=True, keys=keys))
    # Of three blocks the first is never skipped.
    assert 2 <= len(np.unique(features.round(3), axis=0)) <= 4
    alone = applied(model, params, picture[:8], train=True, keys=keys[8:16])
    np.testing.assert_allclose(alone, features[8:16], rtol=1e-4, atol=1e-5)
    still, full = (np.asarray(applied(of, params, picture[:1])) for of in (model, tiny()))
    np.testing.assert_allclose(still, full, rtol=1e-6)


def test_bfloat16_is_close_and_returns_float32():
    params = random_params(tiny())
    exact, rounded = (applied(tiny(dtype=dtype), params, frames()) for dtype in (jnp.float32, jnp.bfloat16))
    assert rounded.dtype == jnp.float32
    apart = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-5 < apart < 0.05


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [("convnext_tiny", 27_820_128), ("convnext_small", 49_454_688), ("convnextv2_tiny", 27_866_496)],
)
def test_parameters_count_as_timms(arch, parameters):
    # timm 1.0: sum(p.numel()) of {arch} with num_classes=0, which has 3 channels.
    model = make_convnext(arch, size=224)
    shapes = variable_shapes(model, 64, 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arch": "convnext_huge"}, r"must be one of convnext_tiny, .*; got 'convnext_huge'"),
        ({"size": 31}, r"A ConvNeXt's frames must be at least 32 pixels; got 31"),
        ({"drop_path": 1.0}, r"drop_path must be from 0 to below 1; got 1.0"),
        ({"train_blocks": 19}, r"train_blocks must be from 1 to 18; got 19"),
        ({"width_factor": 0}, r"width factor must be above 0 and at most 64; got 0"),
    ],
)
def test_bad_options_are_named(changes, said):
    with pytest.raises(InputError, match=said):
        make_convnext(**{"arch": "convnext_tiny", "size": 224} | changes)


def test_a_picture_that_nothing_is_left_of_is_bad_input():
    with pytest.raises(InputError, match="at least 32 pixels; got 31 x 40"):
        tiny().apply({"params": random_params(tiny())}, frames(1, 31, 40), train=False)
