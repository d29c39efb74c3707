"""The encoder's maps, and the decoder at sizes that no power of two divides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.models.decoder import FeaturePyramid, UNetDecoder
from awcl_jax.models.resnet import BasicBlock, ResNet, make_resnet
from awcl_jax.models.supervised import Segmenter
from awcl_jax.models.vit import ViT, ViTOptions

EDGES = {33: (17, 9, 5, 3, 2), 48: (24, 12, 6, 3, 2), 97: (49, 25, 13, 7, 4)}


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_maps_halve_and_features_are_the_mean_of_the_last(arch):
    model, frames = make_resnet(arch, width_factor=0.0625), jnp.zeros((2, 33, 97, 1))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), frames, train=False))
    maps = jax.eval_shape(lambda v: model.apply(v, frames, train=False, method="maps"), variables)
    wide = 4 if arch == "resnet50" else 1
    features = (4, *(wide * 4 * 2**stage for stage in range(4)))
    assert [m.shape for m in maps] == [(2, y, x, f) for y, x, f in zip(EDGES[33], EDGES[97], features, strict=True)]


def test_features_are_the_mean_of_the_last_map():
    model = ResNet(stage_sizes=(1, 1), block=BasicBlock, width=4)
    frames = jax.random.normal(jax.random.key(1), (2, 24, 33, 1))
    variables = jax.jit(lambda: model.init(jax.random.key(0), frames, train=False))()
    maps = jax.jit(lambda v: model.apply(v, frames, train=False, method="maps"))(variables)
    features = jax.jit(lambda v: model.apply(v, frames, train=False))(variables)
    np.testing.assert_allclose(features, np.asarray(maps[-1]).mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("resnet18", (48, 97)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("resnet18", (33, 33)),
                ("resnet18", (97, 33)),
                ("resnet50", (33, 33)),
                ("resnet50", (48, 97)),
                ("resnet50", (97, 33)),
            ]
        ),
    ],
)
def test_logits_are_of_every_pixel_at_any_size(arch, size):
    model = Segmenter(make_resnet(arch, width_factor=0.25, dtype=jnp.bfloat16), UNetDecoder(3, width=16))
    frames = jnp.zeros((2, *size, 1))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), frames, train=False))
    logits, _ = jax.eval_shape(lambda v: model.apply(v, frames, train=True, mutable=["batch_stats"]), variables)
    assert logits.shape == (2, *size, 3)
    assert logits.dtype == jnp.float32
    kernels = {name: part["kernel"].shape for name, part in variables["params"]["decoder"].items() if "conv1" in name}
    assert [shape[-1] for _, shape in sorted(kernels.items())] == [64, 32, 16, 8, 4]
    # The encoder's own variables are those that it has alone, so that pretrained ones fit.
    alone = jax.eval_shape(lambda: make_resnet(arch, width_factor=0.25).init(jax.random.key(0), frames, train=False))
    assert jax.tree.structure({n: t["encoder"] for n, t in variables.items()}) == jax.tree.structure(alone)


def test_a_pixel_sees_its_own_place():
    """What changes in one corner of the frame changes the logits there most."""
    model = Segmenter(ResNet(stage_sizes=(1,), block=BasicBlock, width=4), UNetDecoder(2, width=4))
    frames = jax.random.normal(jax.random.key(1), (1, 48, 48, 1))
    variables = jax.jit(lambda: model.init(jax.random.key(0), frames, train=False))()
    apply = jax.jit(lambda x: model.apply(variables, x, train=False))
    change = np.abs(apply(frames.at[:, :12, 36:].add(1.0)) - apply(frames))[0].sum(-1)
    assert change[:12, 36:].mean() > 3 * change[24:, :24].mean()


@pytest.mark.parametrize(("patch", "edge"), [(8, 40), (16, 16), (14, 42)])
def test_a_vision_transformers_only_map_becomes_a_pyramid(patch, edge):
    encoder = ViT(1, 1, (edge // patch,) * 2, ViTOptions(patch=patch))
    model = Segmenter(encoder, UNetDecoder(3, width=8, pyramid=True))
    frames = jnp.zeros((2, edge, edge, 1))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), frames, train=False))
    logits, _ = jax.eval_shape(lambda v: model.apply(v, frames, train=True, mutable=["batch_stats"]), variables)
    assert logits.shape == (2, edge, edge, 3)
    alone = jax.eval_shape(lambda: encoder.init(jax.random.key(0), frames, train=False))
    assert jax.tree.structure(variables["params"]["encoder"]) == jax.tree.structure(alone["params"])
    maps = jax.eval_shape(
        lambda x: FeaturePyramid(32).init_with_output(jax.random.key(0), x)[0], jnp.zeros((2, 5, 5, 64))
    )
    assert [m.shape[1:] for m in maps] == [(20, 20, 32), (10, 10, 32), (5, 5, 32), (2, 2, 32)]
