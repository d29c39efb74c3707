"""The names of DINOv3's files, made with NumPy; test_vit_peers.py has them from the libraries."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from awcl_jax.models import encoders
from awcl_jax.models.shapes import variable_shapes
from awcl_jax.models.vit import ViT, ViTOptions
from awcl_jax.models.vit_weights import at_grid, load_torch_vit, save_torch_vit, vit_to_torch
from awcl_jax.runtime.errors import InputError

HEAD = np.zeros((2, 3), np.float32)
DINOV3 = {"rotary": True, "registers": 4, "layer_scale": True, "epsilon": 1e-5}


def small(depth=2, heads=1, grid=(3, 3), **options):
    return ViT(depth, heads, grid, ViTOptions(**{"patch": 8, **DINOV3, **options}))


def random_variables(model, channels=1):
    shapes = variable_shapes(model, model.patch, channels)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), dict(shapes))


def timms(model=None):
    """The names and arrays of a file of timm with three channels."""
    model = model or small()
    return vit_to_torch(random_variables(model, channels=3), model)


def read(arrays, tmp_path, model=None):
    save_file(arrays, tmp_path / "w.safetensors")
    return load_torch_vit(tmp_path / "w.safetensors", model or small(), mean=0.17, std=0.18)


def facebooks(arrays):
    """The names of Facebook's code: the mask takes the bias of keys away, and periods are stored in bfloat16."""
    out = {"mask_token": HEAD, "rope_embed.periods": np.array(jnp.bfloat16(100.0) ** (jnp.arange(16) / 16), np.float32)}
    for name, array in arrays.items():
        if name.endswith(".q_bias"):
            keys, values = np.full(64, 7, np.float32), arrays[name.replace(".q_bias", ".v_bias")]
            whole = name.replace(".q_bias", ".qkv.bias")
            out[whole] = np.concatenate([array, keys, values])
            out[f"{whole}_mask"] = np.repeat(np.array([1, 0, 1], np.float32), 64)
        elif not name.endswith(".v_bias"):
            name = re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)
            out[{"reg_token": "storage_tokens"}.get(name, name)] = array
    return out


def of_transformers(arrays, blocks="layer"):
    """The names of transformers; `blocks` is model.layer in its version 5."""
    rules = (
        (r"^(cls_token)$", r"embeddings.\1"),
        (r"^reg_token$", "embeddings.register_tokens"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
        (r"^blocks\.(\d+)\.", rf"{blocks}.\1."),
        (r"\.attn\.([qv])_bias$", r".attention.\1_proj.bias"),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        (r"\.gamma_([12])$", r".layer_scale\1.lambda1"),
        (r"\.mlp\.fc1\.", ".mlp.up_proj."),
        (r"\.mlp\.fc2\.", ".mlp.down_proj."),
    )
    out = {"embeddings.mask_token": HEAD}
    for name, array in arrays.items():
        for pattern, becomes in rules:
            name = re.sub(pattern, becomes, name)
        parts = zip("qkv", np.split(array, 3), strict=True) if name.endswith(".attn.qkv.weight") else ()
        out |= {name.replace(".attn.qkv", f".attention.{part}_proj"): rows for part, rows in parts} or {name: array}
    return out


LAYOUTS = {
    "timm": (lambda arrays: arrays | {"head.weight": HEAD}, "timm DINOv3", "head.*"),
    "Facebook": (facebooks, "DINOv3", "mask_token, rope_embed.*"),
    "Facebook's teacher": (
        lambda arrays: {
            **{f"teacher.backbone.{name}": array for name, array in facebooks(arrays).items()},
            "teacher.dino_head.mlp.0.weight": HEAD,
        },
        "DINOv3",
        "teacher.* (3)",
    ),
    "transformers": (of_transformers, "transformers' DINOv3ViTModel", "embeddings.*"),
    "transformers 5": (
        lambda arrays: of_transformers(arrays, "model.layer"),
        "transformers' DINOv3ViTModel",
        "embeddings.*",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_recognised_and_what_is_left_out_is_named(layout, tmp_path):
    arrange, title, left_out = LAYOUTS[layout]
    model = small()
    found = read(arrange(timms()), tmp_path)
    assert (
        found.title == f"{title} ViT of 2 blocks, 64 features/8 with 4 registers and layer scale and rotary positions"
    )
    assert found.left_out == left_out
    expected = random_variables(model, channels=3)["params"]
    for name in ("cls_token", "reg_token", "blocks_0", "blocks_1", "norm"):
        jax.tree.map(np.testing.assert_array_equal, found.variables["params"][name], expected[name])
    assert found.variables["params"]["patch_kernel"].shape == (8, 8, 1, 64)


def test_a_network_without_biases_has_zeros(tmp_path):
    arrays = {name: array for name, array in timms().items() if not name.endswith(("q_bias", "v_bias"))}
    for named in (arrays, of_transformers(arrays)):
        found = read(named, tmp_path).variables["params"]["blocks_1"]["attn"]["qkv"]
        assert found["q_bias"].shape == found["v_bias"].shape == (64,)
        assert not found["q_bias"].any()
        assert not found["v_bias"].any()


def test_one_missing_bias_is_not_taken_as_zeros(tmp_path):
    arrays = timms()
    del arrays["blocks.1.attn.v_bias"]
    with pytest.raises(InputError, match=r"missing blocks\.1\.attn\.v_bias"):
        read(arrays, tmp_path)


REFUSED = {
    r"has a bias of keys in blocks\.0\.attn\.qkv\.bias": lambda arrays: {
        name: array for name, array in facebooks(arrays).items() if not name.endswith("_mask")
    },
    r"has other periods of rotary positions than 100\^\(k / 16\) in rope_embed\.periods": lambda arrays: (
        facebooks(arrays) | {"rope_embed.periods": np.float32(10000.0 ** (np.arange(16) / 16))}
    ),
    r"in rope_embed\.periods": lambda arrays: facebooks(arrays) | {"rope_embed.periods": np.ones(20, np.float32)},
    r"has a bias of keys in layer\.0\.attention\.q_proj\.bias, layer": lambda arrays: {
        **of_transformers(arrays),
        **{f"layer.{i}.attention.k_proj.bias": np.ones(64, np.float32) for i in range(2)},
    },
    r"is a ViT with gated perceptrons \(SwiGLU\)": lambda arrays: facebooks(arrays) | {"blocks.0.mlp.w1.weight": HEAD},
    r"is a ViT with gated perceptrons \(SwiGLU\);": lambda arrays: (
        of_transformers(arrays) | {"layer.0.mlp.gate_proj.weight": HEAD}
    ),
    r"is a ViT with rotary positions other than DINOv3's": lambda arrays: arrays | {"rope.freqs": HEAD},
    # Other networks of timm without a table: with a bias of keys, or without a class token.
    "is a ViT without a table of positions that is no DINOv3": lambda arrays: {
        **{name: array for name, array in arrays.items() if not name.endswith(("q_bias", "v_bias"))},
        "blocks.0.attn.qkv.bias": np.zeros(192, np.float32),
    },
    "is a EVA|is a ViT without a table": lambda arrays: {k: v for k, v in arrays.items() if k != "cls_token"},
    "unknown cls_norm.weight": lambda arrays: facebooks(arrays) | {"cls_norm.weight": HEAD},
    "unknown pos_embed": lambda arrays: facebooks(arrays) | {"pos_embed": np.zeros((1, 10, 64), np.float32)},
    r"blocks\.0\.attn\.qkv\.bias has numbers that are not finite": lambda arrays: (
        facebooks(arrays) | {"blocks.0.attn.qkv.bias_mask": np.repeat(np.float32([np.nan, 0, 1]), 64)}
    ),
    r"unknown blocks\.0\.attn\.qkv\.bias_mask|missing": lambda arrays: (
        facebooks(arrays) | {"blocks.0.attn.qkv.bias_mask": np.ones(3, np.float32)}
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_not_read_is_named_in_one_line(said, tmp_path):
    with pytest.raises(InputError, match=said) as told:
        read(REFUSED[said](timms()), tmp_path)
    assert "\n" not in str(told.value)


def test_another_encoder_is_answered_with_the_fields_to_set(tmp_path):
    arrays = timms(small(depth=12, heads=6, patch=16))
    flags = (
        "--config.model.vit.patch=16 --config.model.vit.registers=4 --config.model.vit.layer_scale=True "
        "--config.model.vit.rotary=True --config.model.vit.epsilon=1e-05"
    )
    plain = ViT(12, 6, (2, 2), ViTOptions(patch=8))
    with pytest.raises(InputError, match=re.escape(f"the encoder is another. Add {flags}.")):
        read(arrays, tmp_path, plain)
    for arch in ("resnet18", "convnext_tiny"):
        with pytest.raises(InputError, match=rf"timm DINOv3 ViT-S/16 .*; the encoder is a {arch}\. Add .*rotary=True"):
            encoders.load_torch(
                tmp_path / "w.safetensors",
                encoders.make_encoder(arch, size=32),
                arch=arch,
                width_factor=1.0,
                mean=0.17,
                std=0.18,
            )
    rotary = small(heads=6, depth=12, patch=8, registers=0, layer_scale=False, epsilon=1e-6)
    table = {"registers": 4, "layer_scale": True, "epsilon": 1e-6, "rotary": False}
    with pytest.raises(InputError, match=r"Add --config\.model\.vit\.registers=4 .*--config\.model\.vit\.rotary=False"):
        read(timms(small(depth=12, heads=6, patch=8, **table)), tmp_path, rotary)


@pytest.mark.parametrize(
    "options", [{}, {"registers": 0, "layer_scale": False, "epsilon": 1e-6}, {"norm_after": True, "pool": "mean"}]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_was_written_is_read_back(options, channels, tmp_path):
    model = small(**options)
    variables = random_variables(model)
    save_torch_vit(tmp_path / "w.safetensors", variables, model, mean=0.17, std=0.18, channels=channels)
    loaded = load_torch_vit(tmp_path / "w.safetensors", model, mean=0.17, std=0.18)
    same = np.testing.assert_array_equal if channels == 1 else np.testing.assert_allclose
    jax.tree.map(
        lambda a, b: same(a, b) if channels == 1 else same(a, b, rtol=1e-5, atol=1e-6), loaded.variables, variables
    )
    assert loaded.left_out == ""
    names = set(load_file(tmp_path / "w.safetensors"))
    assert {"blocks.0.attn.q_bias", "blocks.0.attn.v_bias", "cls_token"} <= names
    assert not {"pos_embed", "blocks.0.attn.qkv.bias", "blocks.0.ls1.gamma"} & names
    assert ("blocks.0.gamma_1" in names) == model.options.layer_scale


def test_there_is_no_table_to_resample():
    variables = random_variables(small())
    jax.tree.map(np.testing.assert_array_equal, at_grid(variables, (5, 5)), variables)
