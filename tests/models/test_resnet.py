"""The encoder against torchvision's published shapes and a convolution in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from awcl_jax.models.pooling import max_pool
from awcl_jax.models.pretraining import ContrastiveModel, Projection
from awcl_jax.models.resnet import BasicBlock, Bottleneck, Conv, ResNet, make_resnet
from awcl_jax.models.shapes import variable_shapes
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.state import parameter_count


def shapes_of(model, channels=1):
    """Shapes of a ResNet's variables; nothing is computed."""
    return variable_shapes(model, 64, channels)


def init(model, frames, **options):
    """Variables of a model, compiled: op by op it would take ten times as long."""
    return jax.jit(lambda key: model.init(key, frames, **options))(jax.random.key(0))


def normal(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


# torchvision's counts with 1000 classes, less the classifier, as its model pages state them:
# 11,689,512 - 513,000; 21,797,672 - 513,000; 25,557,032 - 2,049,000.
@pytest.mark.parametrize(
    ("arch", "parameters", "features"),
    [("resnet18", 11_176_512, 512), ("resnet34", 21_284_672, 512), ("resnet50", 23_508_032, 2048)],
)
def test_parameters_count_as_torchvisions(arch, parameters, features):
    model = make_resnet(arch)
    variables = shapes_of(model, channels=3)
    assert parameter_count(variables["params"]) == parameters
    out = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, jnp.zeros((2, 224, 224, 3)))
    assert out.shape == (2, features)


@pytest.mark.parametrize(
    ("size", "stride", "kernel"), [(7, 1, 3), (7, 2, 3), (4, 1, 3), (4, 2, 3), (3, 2, 1), (2, 1, 3)]
)
def test_convolution_pads_as_torchvision_does(size, stride, kernel):
    # Maps of up to 3 x 3 pixels take another way through the code than larger ones.
    rng = np.random.default_rng(0)
    x, padding = rng.normal(size=(2, size, size, 3)), kernel // 2
    conv = Conv(5, (kernel, kernel), stride=stride, padding=padding)
    variables = conv.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    weights = np.asarray(variables["params"]["kernel"], np.float64)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    expected = np.stack(
        [[correlate(frame, weights[..., f], mode="valid")[::stride, ::stride, 0] for f in range(5)] for frame in padded]
    ).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(conv.apply(variables, jnp.asarray(x, jnp.float32)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4, 7])
@pytest.mark.parametrize("values", [1000, 3])  # of so few, several pixels of a window are the greatest
def test_max_pool_is_that_of_the_library(size, values):
    x = np.random.default_rng(0).integers(0, values, (2, size, size + 1, 3))
    x = jnp.asarray(x, jnp.float32)

    def pooled(pool):
        def weighted(x):
            y = pool(x)
            return (y * jnp.arange(1, y.size + 1).reshape(y.shape)).sum()

        return jax.jit(jax.value_and_grad(weighted))(x)

    expected = pooled(lambda x: nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1))))
    for found, wanted in zip(pooled(max_pool), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_width_factor_scales_the_features():
    model = make_resnet("resnet18", width_factor=0.25)
    assert shapes_of(model)["params"]["layer4_1"]["conv2"]["kernel"].shape == (3, 3, 128, 128)


def test_strides_v1_and_v15_differ_in_place_only():
    v1, v15 = make_resnet("resnet50", strides="v1"), make_resnet("resnet50", strides="v1.5")
    assert jax.tree.map(jnp.shape, shapes_of(v1)) == jax.tree.map(jnp.shape, shapes_of(v15))
    blocks = [functools.partial(Bottleneck, strides=strides) for strides in ("v1", "v1.5")]
    small = [ResNet(stage_sizes=(1, 1), block=block, width=4) for block in blocks]
    frames = normal(1, 64, 64, 1)
    variables = init(small[0], frames, train=False)
    first, second = (jax.jit(functools.partial(model.apply, train=False))(variables, frames) for model in small)
    assert first.shape == second.shape
    assert not np.allclose(first, second, rtol=1e-2)


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    model = ResNet(stage_sizes=(1, 1), block=BasicBlock, width=8, dtype=jnp.bfloat16)
    frames = normal(4, 32, 32, 1)
    variables = init(model, frames, train=False)
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    features, updated = apply(variables, frames)
    assert features.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated))} == {jnp.dtype("float32")}


def test_unknown_encoder_is_named():
    with pytest.raises(InputError, match="vgg16"):
        make_resnet("vgg16")
    with pytest.raises(InputError, match="v2"):
        make_resnet("resnet50", strides="v2")


def test_projection_gives_unit_rows_of_the_published_shape():
    head = Projection()
    features = normal(3, 512)
    variables = init(head, features)
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes["hidden"]["kernel"] == (512, 512)  # 512-512-128, as the published code
    assert shapes["out"]["kernel"] == (512, 128)
    rows = jax.jit(head.apply)(variables, features)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: head.apply(variables, x).sum()))(jnp.zeros((1, 512)))
    assert np.isfinite(gradient).all()


def test_features_are_the_encoders_and_not_the_projections():
    small = ResNet(stage_sizes=(1, 1), block=BasicBlock, width=8)
    model = ContrastiveModel(small, Projection(embedding=16))
    frames = normal(2, 32, 32, 1)
    variables = init(model, frames, train=False)
    features = jax.jit(functools.partial(model.apply, method="features"))(variables, frames)
    assert features.shape == (2, 16)
    encoder = {name: tree["encoder"] for name, tree in variables.items()}
    alone = jax.jit(functools.partial(small.apply, train=False))
    np.testing.assert_allclose(features, alone(encoder, frames), rtol=1e-6)
