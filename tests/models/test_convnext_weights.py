"""Files of ConvNeXts by their names, made with NumPy; test_convnext_peers.py has them from the libraries."""

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from awcl_jax.models import convnext, encoders
from awcl_jax.models.convnext import ConvNeXt
from awcl_jax.models.convnext_weights import LAYOUTS as LIBRARIES
from awcl_jax.models.convnext_weights import convnext_to_torch, load_torch_convnext, save_torch_convnext
from awcl_jax.models.names import networks_by_prefix, renamed
from awcl_jax.models.shapes import variable_shapes
from awcl_jax.models.vit import ViTOptions
from awcl_jax.models.weights import IMAGENET
from awcl_jax.runtime.errors import InputError

HEAD = np.zeros((2, 3), np.float32)


def small(stages=(1, 2), width=4, **more):
    return ConvNeXt(stages, width, **more)


def random_variables(model, channels=1, seed=0):
    shapes = variable_shapes(model, 32, channels)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), dict(shapes))


def arrays_of(model, **changes):
    """The names and arrays of a file of timm with three channels; None takes one away."""
    arrays = convnext_to_torch(random_variables(model, channels=3)) | changes
    return {name: array for name, array in arrays.items() if array is not None}


def read(arrays, tmp_path, model=None, **more):
    save_file(arrays, tmp_path / "w.safetensors")
    return load_torch_convnext(tmp_path / "w.safetensors", model or small(), mean=0.17, std=0.18, **more)


def assert_same_bits(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_channels_fold_into_one_exactly(tmp_path):
    # In float64: the first layer of the three-channel network on (g - mean_c) / std_c, and ours on (g - 0.17) / 0.18.
    arrays = arrays_of(small())
    stem = read(arrays, tmp_path).variables["params"]["stem_conv"]
    grey = np.random.default_rng(3).uniform(size=(4, 4))
    channels = np.stack([(grey - m) / s for m, s in zip(IMAGENET.mean, IMAGENET.std, strict=True)])
    expected = np.einsum("chw,dchw->d", channels, arrays["stem.0.weight"].astype(np.float64)) + arrays["stem.0.bias"]
    found = np.einsum("hw,hwd->d", (grey - 0.17) / 0.18, stem["kernel"][:, :, 0].astype(np.float64)) + stem["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("second", [False, True])
def test_what_was_written_is_read_back_bit_for_bit(second, tmp_path):
    model = small(second=second)
    variables = random_variables(model)
    save_torch_convnext(tmp_path / "w.safetensors", variables, mean=0.17, std=0.18)
    loaded = load_torch_convnext(tmp_path / "w.safetensors", model, mean=0.17, std=0.18)
    assert_same_bits(loaded.variables, variables)
    assert loaded.left_out == ""
    with safe_open(tmp_path / "w.safetensors", "np") as file:
        assert file.get_tensor("stem.0.weight").shape == (4, 1, 4, 4)
        assert file.get_tensor("stages.1.blocks.1.conv_dw.weight").shape == (8, 1, 7, 7)
        assert file.get_tensor("stages.1.blocks.1.mlp.fc1.weight").shape == (32, 8)


def test_three_channels_of_ours_fold_back_into_one(tmp_path):
    variables = random_variables(small())
    save_torch_convnext(tmp_path / "w.safetensors", variables, mean=0.2, std=0.5, channels=3)
    loaded = load_torch_convnext(tmp_path / "w.safetensors", small(), mean=0.2, std=0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), loaded.variables, variables)


def prefixed(prefix, arrays):
    return {f"{prefix}{name}": array for name, array in arrays.items()}


LAYOUTS = {
    "with a head": (lambda arrays: arrays | {"head.fc.weight": HEAD, "head.fc.bias": HEAD}, "head.* (2)"),
    "a query encoder and its average": (
        lambda arrays: prefixed("module.encoder_q.", arrays) | prefixed("module.encoder_k.", arrays),
        f"module.* ({len(arrays_of(small()))})",
    ),
    "a part of another network": (lambda arrays: prefixed("visual.trunk.", arrays) | {"text.x": HEAD}, "text.*"),
}


# Names of one block and of what is around it, by timm and by others.
OTHER_NAMES = {
    "transformers'": {
        "stem.0.weight": "embeddings.patch_embeddings.weight",
        "stem.1.bias": "embeddings.layernorm.bias",
        "stages.1.downsample.0.weight": "encoder.stages.1.downsampling_layer.0.weight",
        "stages.1.downsample.1.bias": "encoder.stages.1.downsampling_layer.1.bias",
        "stages.1.blocks.1.conv_dw.weight": "encoder.stages.1.layers.1.dwconv.weight",
        "stages.1.blocks.1.norm.bias": "encoder.stages.1.layers.1.layernorm.bias",
        "stages.1.blocks.1.mlp.fc1.weight": "encoder.stages.1.layers.1.pwconv1.weight",
        "stages.1.blocks.1.mlp.fc2.bias": "encoder.stages.1.layers.1.pwconv2.bias",
        "stages.1.blocks.1.gamma": "encoder.stages.1.layers.1.layer_scale_parameter",
        "head.norm.weight": "layernorm.weight",
    },
    "DINOv3": {
        "stem.0.weight": "stages.0.downsample_layers.0.weight",
        "stem.1.bias": "stages.0.downsample_layers.1.bias",
        "stages.1.downsample.0.weight": "stages.1.downsample_layers.0.weight",
        "stages.1.downsample.1.bias": "stages.1.downsample_layers.1.bias",
        "stages.1.blocks.1.conv_dw.weight": "stages.1.layers.1.depthwise_conv.weight",
        "stages.1.blocks.1.norm.bias": "stages.1.layers.1.layer_norm.bias",
        "stages.1.blocks.1.mlp.fc1.weight": "stages.1.layers.1.pointwise_conv1.weight",
        "stages.1.blocks.1.mlp.fc2.bias": "stages.1.layers.1.pointwise_conv2.bias",
        "stages.1.blocks.1.gamma": "stages.1.layers.1.gamma",
        "head.norm.weight": "layer_norm.weight",
    },
}


@pytest.mark.parametrize("library", OTHER_NAMES)
def test_names_of_others_become_timms(library):
    names = OTHER_NAMES[library]
    layout = next(layout for layout in LIBRARIES if layout.title == library)
    arrays = {f"backbone.{theirs}": np.full(1, i) for i, theirs in enumerate(names.values())}
    assert networks_by_prefix(arrays, LIBRARIES) == {"backbone.": layout}
    named, original, left_out = renamed(arrays | {"classifier.weight": HEAD}, "backbone.", layout)
    assert {name: int(array[0]) for name, array in named.items()} == {name: i for i, name in enumerate(names)}
    assert original["stem.0.weight"] == f"backbone.{names['stem.0.weight']}"
    assert left_out == ["classifier.weight"]


def test_gains_of_the_second_version_by_the_names_of_transformers():
    first = {"embeddings.patch_embeddings.weight": HEAD, "encoder.stages.0.layers.0.dwconv.weight": HEAD}
    arrays = first | {f"encoder.stages.0.layers.0.grn.{leaf}": HEAD for leaf in ("weight", "bias")}
    ((prefix, layout),) = networks_by_prefix(arrays, LIBRARIES).items()
    named, _, _ = renamed(arrays, prefix, layout)
    assert {"stages.0.blocks.0.mlp.grn.weight", "stages.0.blocks.0.mlp.grn.bias"} < set(named)


def test_the_last_norm_of_dinov3_by_facebooks_names_is_read_once(tmp_path):
    facebook = {
        name.replace("stem.", "downsample_layers.0.")
        .replace("stages.1.downsample.", "downsample_layers.1.")
        .replace(".blocks.", ".")
        .replace(".conv_dw.", ".dwconv.")
        .replace(".mlp.fc", ".pwconv")
        .replace("head.norm.", "norm."): array
        for name, array in arrays_of(small()).items()
    }
    twice = facebook | {f"norms.3.{leaf}": facebook[f"norm.{leaf}"].copy() for leaf in ("weight", "bias")}
    loaded = read(twice, tmp_path)
    assert loaded.left_out == "norms.* (2)"
    assert_same_bits(loaded.variables, read(arrays_of(small()), tmp_path).variables)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_recognised_and_what_is_left_out_is_named(layout, tmp_path):
    arrange, left_out = LAYOUTS[layout]
    arrays = arrays_of(small())
    loaded = read(arrange(arrays), tmp_path)
    assert loaded.left_out == left_out
    assert_same_bits(loaded.variables, read(arrays, tmp_path).variables)


def test_two_networks_are_not_guessed_between(tmp_path):
    both = prefixed("left.", arrays_of(small())) | prefixed("right.", arrays_of(small()))
    with pytest.raises(InputError, match=r"has 2 networks, under .*'right\.' \(timm\).* Save only the one"):
        read(both, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"stages.0.blocks.0.norm.bias": None, "stem.1.bias": None},
            ["missing stages.0.blocks.0.norm.bias, stem.1.bias"],
        ),
        ({"extra.weight": HEAD, "stages.0.gate": HEAD}, ["unknown extra.weight, stages.0.gate"]),
        (
            {"head.norm.bias": np.zeros(9, np.float32), "stem.1.weight": None},
            ["missing stem.1.weight", "head.norm.bias must be [8], got [9]"],
        ),
        ({"stages.0.blocks.0.gamma": np.full(4, np.nan, np.float32)}, ["gamma has numbers that are not finite"]),
        (
            {"stem.0.weight": np.zeros((4, 3, 2, 2), np.float32)},
            ["stem.0.weight must be [4, 3, 4, 4], got"],
        ),
        ({"stem.0.weight": np.zeros((4, 3), np.float32)}, ["first kernel [d, channels, 4, 4]; got [4, 3]"]),
        ({"stem.0.weight": np.zeros((4, 2, 4, 4), np.float32)}, ["2 input channel(s)"]),
        ({f"stages.{'9' * 5000}.blocks.0.gamma": HEAD}, ["unknown stages.999"]),
    ],
)
def test_tensors_that_do_not_fit_are_all_named(changes, said, tmp_path):
    with pytest.raises(InputError) as told:
        read(arrays_of(small(), **changes), tmp_path)
    for words in said:
        assert words in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("layer1.0.conv1.weight", "is a ResNet; known are ConvNeXts by the names of timm, Facebook, torchvision and t"),
        ("encoder.stages.0.blocks.0.dwconv.weight", "is a ConvNeXt by other names; known are"),
        ("a", r"has no ConvNeXt by known names \(it begins with a\)"),
    ],
)
def test_other_files_are_named(name, said, tmp_path):
    with pytest.raises(InputError, match=said):
        read({name: HEAD}, tmp_path)


@pytest.fixture
def shallow(monkeypatch):
    """Other blocks in each stage: the numbers change nothing but the time."""
    for arch, stages in (("convnext_tiny", (1, 1)), ("convnext_small", (1, 2)), ("convnextv2_tiny", (1, 1))):
        monkeypatch.setitem(convnext.STAGES, arch, stages)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    ("arch", "file", "said"),
    [
        ("convnext_tiny", {"width": 96, "stages": (1, 2)}, "timm ConvNeXt-S; .*arch=convnext_small .*width_factor=1"),
        ("convnext_tiny", {"stages": (1, 1), "width": 6}, "1, 1 blocks from 6 .*arch=convnext_tiny .*factor=0.0625"),
        ("convnext_tiny", {"stages": (1, 1), "width": 96, "second": True}, "V2-T; .* Add .*arch=convnextv2_tiny"),
        ("convnext_tiny", {"stages": (3, 1), "width": 96}, "3, 1 blocks from 96 features, which is none of convnext_t"),
        ("resnet18", {"stages": (1, 1), "width": 96}, "is a timm ConvNeXt-T; the encoder is a resnet18. Add .*tiny"),
        ("vit_tiny", {"stages": (1, 1), "width": 96}, "is a timm ConvNeXt-T; the encoder is a vit_tiny. Add .*_tiny"),
        (
            "vit_tiny",
            {"stages": (3, 1), "width": 96},
            "a vit_tiny. It has a size that no encoder here has",
        ),
    ],
)
def test_another_network_is_answered_with_the_fields_to_set(arch, file, said, tmp_path):
    save_file(arrays_of(small(**file)), tmp_path / "w.safetensors")
    model = encoders.make_encoder(arch, size=32, vit=ViTOptions(patch=8))
    with pytest.raises(InputError, match=said) as told:
        encoders.load_torch(tmp_path / "w.safetensors", model, arch=arch, width_factor=1.0, mean=0.17, std=0.18)
    assert "\n" not in str(told.value)


def test_a_vit_is_answered_with_the_file_that_it_got(tmp_path):
    name = "blocks.11.norm1.weight"
    save_file(
        {"patch_embed.proj.weight": np.zeros((192, 3, 16, 16), np.float32), name: HEAD, "pos_embed": HEAD},
        tmp_path / "w.safetensors",
    )
    model = encoders.make_encoder("convnext_tiny", size=32)
    with pytest.raises(InputError, match=r"is a timm ViT-T/16; the encoder is a convnext_tiny\. Add .*arch=vit_tiny"):
        encoders.load_torch(
            tmp_path / "w.safetensors", model, arch="convnext_tiny", width_factor=1.0, mean=0.17, std=0.18
        )
