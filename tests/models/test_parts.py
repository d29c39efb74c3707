"""Blocks computed for a few pictures at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.models import parts
from awcl_jax.models.convnext import ConvNeXt
from awcl_jax.models.vit import ViT, ViTOptions


def test_pictures_at_a_time_worked_out_by_hand():
    # Of ViT-S/16 at 224 px, 5 pictures of 197 tokens are below 1,024, and 4 divide 64; 7 is prime; 5,000 are too many.
    found = [parts.pictures_at_a_time(*given) for given in ((64, 197), (7, 197), (7, 17), (64, 5000))]
    assert found == [4, 1, 7, 1]


ENCODERS = {
    "vit": ViT(2, 1, (3, 3), ViTOptions(patch=8, drop_path=0.5, layer_scale=True)),  # 10 tokens
    "rotary vit": ViT(2, 1, (3, 3), ViTOptions(patch=8, drop_path=0.5, rotary=True)),
    "convnext": ConvNeXt((1, 1), width=4, drop_path=0.5),  # 64 pixels and 16
}


@pytest.mark.parametrize(
    ("name", "edge", "remat"),
    [
        pytest.param("vit", 24, False, marks=pytest.mark.release),
        pytest.param("vit", 24, True, marks=pytest.mark.slow),
        pytest.param("rotary vit", 24, False, marks=pytest.mark.slow),
        pytest.param("convnext", 32, False, marks=pytest.mark.release),
        pytest.param("convnext", 32, True, marks=pytest.mark.slow),
    ],
)
def test_a_few_pictures_at_a_time_have_the_numbers_of_all_at_once(name, edge, remat, monkeypatch):
    model = ENCODERS[name].clone(remat=remat)
    rng = np.random.default_rng(0)
    frames = jnp.asarray(rng.normal(size=(6, edge, edge, 1)), jnp.float32)
    keys = jax.random.split(jax.random.key(3), 6)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), frames, train=False))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes["params"])

    def numbers():
        def loss(params):
            features = model.apply({"params": params}, frames, train=True, keys=keys)
            return (features**2).sum(), features

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    found = []
    places = 64 if name == "convnext" else 10
    for count in (1, 2):
        monkeypatch.setattr(parts, "_TOKENS", count * places)
        found.append(numbers())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # no loop
    expected = numbers()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    for one in found:
        jax.tree.map(close, one, expected)
