"""Files of vision transformers by their names, made with NumPy; test_vit_peers.py has them from the libraries."""

import re

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from awcl_jax.models import encoders, weights
from awcl_jax.models.resnet import make_resnet
from awcl_jax.models.shapes import variable_shapes
from awcl_jax.models.vit import ViT, ViTOptions
from awcl_jax.models.vit_weights import OPENAI, at_grid, load_torch_vit, save_torch_vit, vit_to_torch
from awcl_jax.models.weights import IMAGENET
from awcl_jax.runtime.errors import InputError

GRID = (3, 3)


def small(depth=2, heads=1, grid=GRID, **options):
    return ViT(depth, heads, grid, ViTOptions(**{"patch": 8, **options}))


def random_variables(model, channels=1, seed=0):
    shapes = variable_shapes(model, model.patch, channels)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), dict(shapes))


def arrays_of(model, **changes):
    """The names and arrays of a file of timm with three channels; None takes one away."""
    arrays = vit_to_torch(random_variables(model, channels=3), model)
    arrays["pos_embed"][:, 0] = 0.5  # timm's class token has a position
    arrays |= changes
    return {name: array for name, array in arrays.items() if array is not None}


def read(arrays, tmp_path, model=None, **more):
    save_file(arrays, tmp_path / "w.safetensors")
    return load_torch_vit(tmp_path / "w.safetensors", model or small(), mean=0.17, std=0.18, **more)


def assert_same_bits(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_position_of_the_class_token_is_added_to_it(tmp_path):
    arrays = arrays_of(small())
    found = read(arrays, tmp_path).variables["params"]
    np.testing.assert_array_equal(found["cls_token"], arrays["cls_token"][0, 0] + np.float32(0.5))
    np.testing.assert_array_equal(found["pos_embed"].reshape(9, 64), arrays["pos_embed"][0, 1:])
    np.testing.assert_array_equal(found["blocks_1"]["mlp"]["fc1"]["kernel"], arrays["blocks.1.mlp.fc1.weight"].T)


def test_channels_fold_into_one_exactly(tmp_path):
    # In float64: the patches of the three-channel network on (g - mean_c) / std_c, and ours on (g - 0.17) / 0.18.
    arrays = arrays_of(small())
    params = read(arrays, tmp_path).variables["params"]
    grey = np.random.default_rng(3).uniform(size=(8, 8))
    channels = np.stack([(grey - m) / s for m, s in zip(IMAGENET.mean, IMAGENET.std, strict=True)])
    expected = np.einsum("chw,dchw->d", channels, arrays["patch_embed.proj.weight"].astype(np.float64))
    expected += arrays["patch_embed.proj.bias"]
    found = np.einsum("hw,hwd->d", (grey - 0.17) / 0.18, params["patch_kernel"][:, :, 0].astype(np.float64))
    np.testing.assert_allclose(found + params["patch_bias"], expected, rtol=1e-5, atol=1e-5)


def test_without_a_bias_the_means_go_to_the_positions(tmp_path):
    model = small(pre_norm=True, epsilon=1e-5)
    arrays = arrays_of(model)
    found = read(arrays, tmp_path, model, trained=OPENAI).variables["params"]
    assert "patch_bias" not in found
    shift = found["pos_embed"].reshape(9, 64) - arrays["pos_embed"][0, 1:]
    sums = arrays["patch_embed.proj.weight"].astype(np.float64).sum(axis=(2, 3))
    expected = sums @ ((0.17 - np.array(OPENAI.mean)) / OPENAI.std)
    np.testing.assert_allclose(shift, np.tile(expected, (9, 1)), rtol=1e-4, atol=1e-5)


def test_timms_clip_was_trained_with_clips_normalisation(tmp_path):
    model = small(pre_norm=True, epsilon=1e-5)
    arrays = arrays_of(model)
    as_given, by_itself = (read(arrays, tmp_path, model, trained=given).variables for given in (OPENAI, None))
    assert_same_bits(by_itself, as_given)


def test_patches_of_another_size_are_named_and_no_flag_is_advised(tmp_path):
    arrays = arrays_of(small()) | {"patch_embed.proj.weight": np.zeros((64, 3, 32, 32), np.float32)}
    save_file(arrays, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"patches of 32 pixels are not read, only of 8, 14, 16\.$"):
        read(arrays, tmp_path)
    with pytest.raises(InputError, match="the encoder is a resnet18") as told:
        encoders.load_torch(
            tmp_path / "w.safetensors", make_resnet("resnet18"), arch="resnet18", width_factor=1, mean=0.17, std=0.18
        )
    assert "patch=32" not in str(told.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"registers": 2, "layer_scale": True, "epsilon": 1e-7},
        {"pre_norm": True, "epsilon": 1e-5, "activation": "quick_gelu"},
        {"norm_after": True, "pool": "mean"},
    ],
)
def test_what_was_written_is_read_back_bit_for_bit(options, tmp_path):
    model = small(**options)
    variables = random_variables(model)
    save_torch_vit(tmp_path / "w.safetensors", variables, model, mean=0.17, std=0.18)
    loaded = load_torch_vit(tmp_path / "w.safetensors", model, mean=0.17, std=0.18)
    assert_same_bits(loaded.variables, variables)
    assert loaded.left_out == ""
    with safe_open(tmp_path / "w.safetensors", "np") as file:
        assert file.get_tensor("patch_embed.proj.weight").shape == (64, 1, 8, 8)
        assert file.get_tensor("blocks.0.attn.qkv.weight").shape == (192, 64)


def test_three_channels_of_ours_fold_back_into_one(tmp_path):
    model = small()
    variables = random_variables(model)
    save_torch_vit(tmp_path / "w.safetensors", variables, model, mean=0.2, std=0.5, channels=3)
    loaded = load_torch_vit(tmp_path / "w.safetensors", model, mean=0.2, std=0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), loaded.variables, variables)


def chunked(arrays):
    """The names of a DINOv2 of chunks of one block: the blocks keep their numbers."""
    return {re.sub(r"^blocks\.(\d+)\.", r"blocks.\1.\1.", name): array for name, array in arrays.items()}


HEAD = np.zeros((2, 3), np.float32)
LAYOUTS = {
    "with a head": (lambda arrays: arrays | {"head.weight": HEAD, "head.bias": HEAD}, "timm", "head.* (2)"),
    "MAE": (
        lambda arrays: (
            arrays
            | {
                "mask_token": HEAD,
                "decoder_embed.weight": HEAD,
                "decoder_blocks.0.norm1.weight": HEAD,
                "decoder_pos_embed": HEAD,
            }
        ),
        "MAE",
        "decoder_* (3), mask_token",
    ),
    "DINOv2": (lambda arrays: arrays | {"mask_token": HEAD}, "DINOv2", "mask_token"),
    "DINOv2's teacher": (
        lambda arrays: {
            **{f"teacher.backbone.{name}": array for name, array in chunked(arrays).items()},
            "teacher.dino_head.mlp.0.weight": HEAD,
        },
        "DINOv2",
        "teacher.*",
    ),
    "DINO's teacher": (
        lambda arrays: {
            **{f"student.module.backbone.{name}": array + 1 for name, array in arrays.items()},
            **{f"teacher.backbone.{name}": array for name, array in arrays.items()},
            "teacher.head.last_layer.weight_v": HEAD,
        },
        "DINO",
        f"student.* ({len(arrays_of(small()))}), teacher.*",
    ),
    "a moving average": (
        lambda arrays: {
            **{f"module.encoder_q.{name}": array for name, array in arrays.items()},
            **{f"module.encoder_k.{name}": array + 1 for name, array in arrays.items()},
        },
        "timm",
        f"module.* ({len(arrays_of(small()))})",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_recognised_and_what_is_left_out_is_named(layout, tmp_path):
    arrange, title, left_out = LAYOUTS[layout]
    arrays = arrays_of(small())
    loaded = read(arrange(arrays), tmp_path)
    assert loaded.title.startswith(f"{title} ViT")
    assert loaded.left_out == left_out
    assert_same_bits(loaded.variables, read(arrays, tmp_path).variables)


def test_dictionaries_of_torch_are_looked_through(tmp_path, monkeypatch):
    arrays = arrays_of(small())
    (tmp_path / "w.pth").touch()
    content = {"model": arrays, "optimizer": {"state": {0: {"exp_avg": HEAD}}, "param_groups": [{"lr": 1}]}, "epoch": 3}
    monkeypatch.setattr(weights, "read_torch_zip", lambda path: content)
    loaded = load_torch_vit(tmp_path / "w.pth", small(), mean=0.17, std=0.18)
    assert loaded.left_out == "optimizer.*"
    assert_same_bits(loaded.variables, read(arrays, tmp_path).variables)


def test_positions_are_resampled_at_loading(tmp_path):
    arrays = arrays_of(small())
    larger = small(grid=(5, 5))
    as_timm = read(arrays, tmp_path, larger).variables["params"]["pos_embed"]
    assert as_timm.shape == (5, 5, 64)
    as_mae = read(arrays | {"decoder_embed.weight": HEAD}, tmp_path, larger).variables["params"]["pos_embed"]
    as_dinov2 = read(arrays | {"mask_token": HEAD}, tmp_path, larger).variables["params"]["pos_embed"]
    assert len({table.tobytes() for table in (as_timm, as_mae, as_dinov2)}) == 3
    np.testing.assert_allclose(as_timm, at_grid(read(arrays, tmp_path).variables, (5, 5))["params"]["pos_embed"])


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ({"patch": 16}, "Add --config.model.vit.patch=8."),
        ({"registers": 4, "layer_scale": True}, "--config.model.vit.registers=0 --config.model.vit.layer_scale=False"),
        ({"pre_norm": True, "epsilon": 1e-5}, "--config.model.vit.pre_norm=False --config.model.vit.epsilon=1e-06"),
        ({"norm_after": True}, "--config.model.vit.norm_after=False"),
        ({"heads": 2}, "of 2 blocks, 64 features/8, which is none of vit_tiny"),
    ],
)
def test_another_network_is_answered_with_the_fields_to_set(model, flags, tmp_path):
    with pytest.raises(InputError) as told:
        read(arrays_of(small()), tmp_path, small(**model))
    assert flags in str(told.value)
    assert "\n" not in str(told.value)


def test_sizes_are_named(tmp_path):
    arrays = arrays_of(small(depth=12, heads=3, patch=16, registers=4, layer_scale=True))
    with pytest.raises(
        InputError, match=r"is a timm ViT-T/16 with 4 registers and layer scale; the encoder is another. Add"
    ) as told:
        read(arrays, tmp_path, small(depth=12, heads=6, patch=16))
    assert "--config.model.arch=vit_tiny --config.model.width_factor=1 --config.model.vit.registers=4" in str(
        told.value
    )


FOREIGN = [
    ("Swin transformer", "layers.0.blocks.1.attn.relative_position_bias_table"),
    (
        "Swin transformer",
        "encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table",
    ),
    ("Mamba", "layers.0.mixer.A_log"),
    ("video transformer", "model.time_embed"),
    ("ConvNeXt", "stages.0.blocks.0.conv_dw.weight"),
    (r"ViT pooled by attention, without a class token \(SigLIP\)", "vision_model.head.probe"),
    (r"ViT pooled by attention, without a class token \(SigLIP\)", "attn_pool.latent"),
    ("CLIP ResNet", "visual.layer1.0.conv1.weight"),
    ("ResNet", "layer1.0.conv1.weight"),
]


@pytest.mark.parametrize(("kind", "name"), FOREIGN)
def test_other_networks_are_named(kind, name, tmp_path):
    with pytest.raises(InputError, match=f"is a {kind}; known are ViTs by the names of timm"):
        read({name: HEAD, "patch_embed.proj.bias": HEAD}, tmp_path)


def test_a_convnext_of_transformers_is_no_vision_transformer(tmp_path):
    names = ("embeddings.patch_embeddings.weight", "encoder.stages.0.layers.0.dwconv.weight")  # the first is DINOv3's
    with pytest.raises(InputError, match="is a ConvNeXt; known are"):
        read(dict.fromkeys(names, HEAD), tmp_path)


def test_kernels_over_time_are_of_a_video_transformer(tmp_path):
    with pytest.raises(InputError, match="is a video transformer; known are"):
        read({"encoder.embeddings.patch_embeddings.proj.weight": np.zeros((64, 3, 2, 8, 8), np.float32)}, tmp_path)


OTHERS = {
    "video transformer": {"patch_embed.proj.weight": np.zeros((64, 3, 2, 8, 8), np.float32)},
    r"ViT with relative positions \(BEiT, SAM\)": {"blocks.0.attn.relative_position_bias_table": HEAD},
    r"ViT with rotary positions other than DINOv3's \(EVA-02\)": {"rope.freqs_cos": HEAD},
    "EVA": {"blocks.0.attn.q_bias": HEAD},
    r"ViT with gated perceptrons \(SwiGLU\)": {"blocks.0.mlp.w12.weight": HEAD},
    r"ViT with gated perceptrons \(SwiGLU\)$$": {"blocks.0.mlp.gate_proj.weight": HEAD},  # of transformers
    r"ViT with gated perceptrons \(SwiGLU\)$": {  # as timm packs them
        "blocks.0.mlp.fc1.weight": np.zeros((2 * 176, 64), np.float32),
        "blocks.0.mlp.fc2.weight": np.zeros((64, 176), np.float32),
    },
    r"distilled DeiT by the names of transformers \(timm's are read\)": {"embeddings.distillation_token": HEAD},
    "ViT without a table of positions that is no DINOv3": {"pos_embed": None},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_vision_transformers_are_named(kind, tmp_path):
    with pytest.raises(InputError, match=f"is a {kind.rstrip('$')}; known are"):
        read(arrays_of(small(), **OTHERS[kind]), tmp_path)


def test_the_second_token_of_a_distilled_deit_is_a_register(tmp_path):
    model = small(registers=1)
    arrays = arrays_of(model)
    arrays["dist_token"] = arrays.pop("reg_token")
    positions = np.random.default_rng(4).normal(size=(1, 2, 64)).astype(np.float32)
    table = arrays["pos_embed"][:, -9:]
    arrays |= {"pos_embed": np.concatenate([positions, table], axis=1), "head_dist.weight": HEAD}
    loaded = read(arrays, tmp_path, model)
    params = loaded.variables["params"]
    np.testing.assert_array_equal(params["cls_token"], arrays["cls_token"][0, 0] + positions[0, 0])
    np.testing.assert_array_equal(params["reg_token"], arrays["dist_token"][0] + positions[0, 1])
    np.testing.assert_array_equal(params["pos_embed"].reshape(9, 64), table[0])
    assert (loaded.title.split(" ViT")[0], loaded.left_out) == ("distilled DeiT", "head_dist.*")
    with pytest.raises(InputError, match=r"is a distilled DeiT .* with 1 register; .*--config.model.vit.registers=1"):
        read(arrays, tmp_path, small())


def test_an_unknown_file_is_answered_with_its_first_names(tmp_path):
    with pytest.raises(InputError, match=r"no vision transformer by known names \(it begins with a, b, c\); known are"):
        read(dict.fromkeys("abcd", HEAD), tmp_path)


def test_two_networks_are_not_guessed_between(tmp_path):
    both = {f"{prefix}{name}": array for prefix in ("left.", "right.") for name, array in arrays_of(small()).items()}
    with pytest.raises(InputError, match=r"has 2 networks, under .*'right\.' \(timm\).* Save only the one"):
        read(both, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"blocks.0.norm1.bias": None, "norm.weight": None}, ["missing blocks.0.norm1.bias, norm.weight"]),
        ({"extra.weight": HEAD, "blocks.0.gate": HEAD}, ["unknown blocks.0.gate, extra.weight"]),
        (
            {"norm.bias": np.zeros(9, np.float32), "cls_token": None},
            ["missing cls_token", "norm.bias must be [64], got [9]"],
        ),
        ({"blocks.0.mlp.fc1.bias": np.full(256, np.nan, np.float32)}, ["fc1.bias has numbers that are not finite"]),
        ({"pos_embed": np.zeros((1, 13, 64), np.float32)}, ["positions for 13 tokens, which is neither a square"]),
        ({"pos_embed": np.zeros((1, 10, 60), np.float32)}, ["pos_embed must be [3, 3, 64], got [1, 10, 60]"]),
        ({"patch_embed.proj.weight": np.zeros((64, 3, 8, 4), np.float32)}, ["patch kernel [d, channels, p, p]"]),
        ({"patch_embed.proj.weight": np.zeros((64, 2, 8, 8), np.float32)}, ["2 input channel(s)"]),
    ],
)
def test_tensors_that_do_not_fit_are_all_named(changes, said, tmp_path):
    with pytest.raises(InputError) as told:
        read(arrays_of(small(), **changes), tmp_path)
    for words in said:
        assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_stored_types_become_float32(tmp_path):
    arrays = {name: array.astype(np.float16) for name, array in arrays_of(small()).items()}
    loaded = read(arrays, tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {np.dtype(np.float32)}
    assert set(load_file(tmp_path / "w.safetensors")) == set(arrays)


def test_no_flag_is_named_for_a_size_that_no_encoder_has(tmp_path):
    save_file(arrays_of(small()), tmp_path / "w.safetensors")
    resnet = encoders.make_encoder("resnet18", size=32)
    with pytest.raises(InputError, match="It has a size that no encoder here has") as told:
        encoders.load_torch(tmp_path / "w.safetensors", resnet, arch="resnet18", width_factor=1.0, mean=0.17, std=0.18)
    assert "--config" not in str(told.value)


def test_a_resnet_is_answered_with_the_file_that_it_got(tmp_path):
    save_file(arrays_of(small(depth=12, heads=6, patch=14, layer_scale=True)), tmp_path / "w.safetensors")
    resnet = encoders.make_encoder("resnet18", size=32)
    settings = {"arch": "resnet18", "width_factor": 1.0, "mean": 0.17, "std": 0.18}
    with pytest.raises(
        InputError, match=r"is a timm ViT-S/14 with layer scale; the encoder is a resnet18\. Add"
    ) as told:
        encoders.load_torch(tmp_path / "w.safetensors", resnet, **settings)
    assert "--config.model.arch=vit_small --config.model.width_factor=1 --config.model.vit.patch=14" in str(told.value)
    save_file({"a": HEAD}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="has no ResNet by torchvision's names"):
        encoders.load_torch(tmp_path / "w.safetensors", resnet, **settings)


def test_two_names_of_one_array_are_not_merged(tmp_path):
    arrays = arrays_of(small())
    with pytest.raises(InputError, match=r"unknown fc_norm\.|unknown norm\."):
        read(arrays | {"fc_norm.weight": arrays["norm.weight"]}, tmp_path, small(norm_after=True))


@pytest.mark.parametrize(
    "name", [f"blocks.{'9' * 5000}.norm1.weight", "blocks.999999999.norm1.weight", "blocks.9999.x"]
)
def test_a_number_without_end_is_only_a_name(name, tmp_path):
    with pytest.raises(InputError, match=r"unknown|which is none of"):
        read(arrays_of(small(), **{name: HEAD}), tmp_path)


@pytest.mark.parametrize("epsilon", ["x", "nan", "1e999"])
def test_an_epsilon_of_a_stranger_is_not_trusted(epsilon, tmp_path):
    save_file(arrays_of(small()), tmp_path / "w.safetensors", {"awcl_jax.epsilon": epsilon})
    try:
        load_torch_vit(tmp_path / "w.safetensors", small(), mean=0.17, std=0.18)
    except InputError as error:
        assert "--config.model.vit.epsilon" in str(error)  # noqa: PT017
