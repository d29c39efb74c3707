"""Weights of PyTorch networks, against a ResNet in PyTorch."""

import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from awcl_jax.models import weights
from awcl_jax.models.resnet import make_resnet
from awcl_jax.models.shapes import variable_shapes
from awcl_jax.models.weights import (
    IMAGENET,
    Normalisation,
    load_torch_resnet,
    read_torch_resnet,
    save_torch_resnet,
    to_torch,
)
from awcl_jax.runtime.errors import InputError

NARROW = 0.125  # width factor of the small networks: 8 features in conv1


def features_of(model, variables, frames):
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, frames))


def random_variables(arch="resnet18", channels=1, seed=0):
    """Variables of a small encoder, all of them random."""
    model = make_resnet(arch, width_factor=NARROW)
    shapes = variable_shapes(model, 32, channels)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(np.float32), shapes)


def small_arrays(**changes):
    """The names and arrays of a small ResNet-18 of three channels; None takes one away."""
    arrays = to_torch(random_variables(channels=3)) | changes
    return {name: array for name, array in arrays.items() if array is not None}


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype == np.float32
        assert one.tobytes() == other.tobytes()


@pytest.mark.peers
@pytest.mark.parametrize(
    "arch", ["resnet18", *(pytest.param(a, marks=pytest.mark.slow) for a in ("resnet34", "resnet50"))]
)
def test_three_channels_give_the_features_of_torch(arch, tmp_path):
    torch = pytest.importorskip("torch")
    from tests.helpers.torch_resnet import TorchResNet

    network = TorchResNet(arch, width=8)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    frames = np.random.default_rng(0).normal(size=(2, 65, 64, 3)).astype(np.float32)
    expected = network(torch.tensor(frames).permute(0, 3, 1, 2)).numpy()
    variables = read_torch_resnet(tmp_path / "w.pth", arch, width_factor=NARROW)
    found = features_of(make_resnet(arch, width_factor=NARROW), variables, frames)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.peers
def test_one_channel_gives_the_features_of_three_with_one_mean(tmp_path):
    torch = pytest.importorskip("torch")
    from tests.helpers.torch_resnet import TorchResNet

    network = TorchResNet("resnet18", width=8)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    grey = np.random.default_rng(0).uniform(size=(2, 64, 64)).astype(np.float32)
    trained = Normalisation(mean=(0.3, 0.3, 0.3), std=(0.2, 0.25, 0.5))
    copies = torch.tensor((grey[:, None] - 0.3) / np.array(trained.std, np.float32)[:, None, None])
    variables = load_torch_resnet(
        tmp_path / "w.pth", "resnet18", mean=0.3, std=0.4, width_factor=NARROW, trained=trained
    )
    model = make_resnet("resnet18", width_factor=NARROW)
    found = features_of(model, variables, ((grey - 0.3) / 0.4)[..., None])
    np.testing.assert_allclose(found, network(copies).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.peers
@pytest.mark.parametrize(("mean", "std"), [(0.449, 0.226), (0.17, 0.18)])
def test_imagenets_means_change_only_the_edge_of_the_first_maps(mean, std, tmp_path):
    torch = pytest.importorskip("torch")
    from tests.helpers.torch_resnet import TorchResNet

    network = TorchResNet("resnet18", width=8)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    grey = np.random.default_rng(0).uniform(size=(2, 1, 64, 64)).astype(np.float32)
    means, stds = (torch.tensor(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    variables = load_torch_resnet(tmp_path / "w.pth", "resnet18", mean=mean, std=std, width_factor=NARROW)
    folded = TorchResNet("resnet18", width=8, channels=1)
    folded.load_state_dict({name: torch.tensor(array) for name, array in to_torch(variables).items()}, strict=False)
    with torch.no_grad():
        expected = network.bn1(network.conv1((torch.tensor(grey) - means) / stds)).numpy()
        found = folded.bn1(folded.conv1((torch.tensor(grey) - mean) / std)).numpy()
    # A kernel of 7 at stride 2 with padding 3 sees the padding at the first two pixels and, of 64 pixels, the last.
    np.testing.assert_allclose(found[:, :, 2:-1, 2:-1], expected[:, :, 2:-1, 2:-1], rtol=1e-4, atol=1e-4)
    assert not np.allclose(found[:, :, :2], expected[:, :, :2], atol=1e-2)


def real_weights(real_data):
    path = real_data.parent / "weights" / "resnet50_v1_imagenet.safetensors"
    if not path.is_file():
        pytest.skip(f"no weights in {path}")
    return path


@pytest.mark.peers
@pytest.mark.slow
def test_imagenets_resnet50_sees_in_a_grey_frame_what_torch_sees(real_data):
    torch = pytest.importorskip("torch")
    from tests.helpers.torch_resnet import TorchResNet

    path = real_weights(real_data)
    network = TorchResNet("resnet50", strides="v1")
    arrays = {name: torch.tensor(array.astype(np.float32)) for name, array in load_file(path).items()}
    loaded = network.load_state_dict(arrays, strict=False)
    assert loaded.unexpected_keys == ["fc.bias", "fc.weight"]
    assert all("num_batches" in name for name in loaded.missing_keys)
    files = sorted((real_data / "FETAL_PLANES_DB" / "Images").glob("*.png"))[::400]
    pictures = [cv2.resize(cv2.imread(str(f), cv2.IMREAD_GRAYSCALE), (128, 128)) for f in files]
    grey = np.stack(pictures)[..., None].astype(np.float32) / 255
    frames = (grey - np.array(IMAGENET.mean, np.float32)) / np.array(IMAGENET.std, np.float32)
    expected = network(torch.tensor(frames).permute(0, 3, 1, 2)).numpy()

    model = make_resnet("resnet50", strides="v1")
    found = features_of(model, read_torch_resnet(path, "resnet50"), frames)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    other = features_of(make_resnet("resnet50"), read_torch_resnet(path, "resnet50"), frames)
    assert not np.allclose(other, expected, rtol=0.1, atol=0.1)  # with strides as torchvision's, it is another network

    folded = load_torch_resnet(path, "resnet50", mean=0.449, std=0.226)
    found = features_of(model, folded, (grey - np.float32(0.449)) / np.float32(0.226))
    apart = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert apart.max() < 0.15  # the edge, see load_torch_resnet; frames differ from each other by 0.85 on average


def awcl_names(arrays):
    """The names of the published AWCL code: a Sequential of torchvision's layers, and its projection."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    named = {}
    for name, array in arrays.items():
        layer, _, rest = name.partition(".")
        named[f"features.{numbers[layer]}.{rest}"] = array
    heads = {f"l{i}.{leaf}": np.zeros(3, np.float32) for i in (1, 2) for leaf in ("weight", "bias")}
    return named | heads


@pytest.mark.peers
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("layout", ["torchvision", "awcl", "parallel", "state_dict", "model"])
def test_names_of_several_layouts_are_known(suffix, layout, tmp_path):
    arrays = small_arrays()
    expected = random_variables(channels=3)
    content = dict(arrays)
    content["bn1.num_batches_tracked"] = np.array(5)
    content["fc.weight"], content["fc.bias"] = np.zeros((10, 64), np.float32), np.zeros(10, np.float32)
    if layout == "awcl":
        content = awcl_names(arrays)
    if layout in ("parallel", "state_dict"):
        content = {f"module.{name}": array for name, array in content.items()}
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(content, path)
    else:
        torch = pytest.importorskip("torch")
        content = {name: torch.tensor(array) for name, array in content.items()}
        if layout in ("state_dict", "model"):
            content = {"epoch": 3, layout: content, "optimizer": {"lr": 0.1}}
        torch.save(content, path)
    assert_same_bits(read_torch_resnet(path, "resnet18", width_factor=NARROW), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_stored_types_become_float32(dtype, tmp_path):
    arrays = {name: array.astype(jnp.dtype(dtype)) for name, array in small_arrays().items()}
    save_file(arrays, tmp_path / "w.safetensors")
    variables = read_torch_resnet(tmp_path / "w.safetensors", "resnet18", width_factor=NARROW)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    found = variables["params"]["layer3_0"]["downsample_conv"]["kernel"]
    expected = arrays["layer3.0.downsample.0.weight"].astype(np.float32)
    np.testing.assert_array_equal(found, expected.transpose(2, 3, 1, 0))


def test_what_was_written_is_read_back_bit_for_bit(tmp_path):
    variables = random_variables("resnet50")
    path = tmp_path / "w.safetensors"
    save_torch_resnet(path, variables, mean=0.17, std=0.18)
    read = load_torch_resnet(path, "resnet50", mean=0.17, std=0.18, width_factor=NARROW)
    assert_same_bits(read, variables)
    with safe_open(path, "np") as file:
        assert file.get_tensor("layer2.0.downsample.1.running_var").shape == (64,)
        assert file.get_tensor("conv1.weight").shape == (8, 1, 7, 7)


def test_three_channels_of_ours_fold_back_into_one(tmp_path):
    variables = random_variables()
    path = tmp_path / "w.safetensors"
    save_torch_resnet(path, variables, mean=0.17, std=0.18, channels=3)
    read = load_torch_resnet(path, "resnet18", mean=0.17, std=0.18, width_factor=NARROW)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), read, variables)


def test_a_file_of_ours_remembers_its_normalisation(tmp_path):
    # A kernel of ones on (g - 0.2) / 0.5 is one of 0.5 / 0.5 = 1/2 on (g - 0.1) / 0.25, and -0.2 * 49 beside it.
    variables = random_variables()
    variables["params"]["conv1"]["kernel"] = np.ones((7, 7, 1, 8), np.float32)
    variables["batch_stats"]["bn1"]["mean"] = np.zeros(8, np.float32)
    save_torch_resnet(tmp_path / "w.safetensors", variables, mean=0.2, std=0.5)
    read = load_torch_resnet(tmp_path / "w.safetensors", "resnet18", mean=0.1, std=0.25, width_factor=NARROW)
    np.testing.assert_allclose(read["params"]["conv1"]["kernel"], 0.5)
    np.testing.assert_allclose(read["batch_stats"]["bn1"]["mean"], 0.2 * 49, rtol=1e-6)


@pytest.mark.parametrize(
    "stated",
    [
        "[0.17, 0.18]",
        "0.17",
        '{"mean": ["a", "b", "c"], "std": [1, 1, 1]}',
        '{"mean": [0.17]}',
        '{"mean": 1, "std": 1}',
    ],
)
def test_a_normalisation_that_is_none_is_one_line(stated, tmp_path):
    save_file(small_arrays(), tmp_path / "w.safetensors", {"awcl_jax.normalisation": stated})
    with pytest.raises(InputError, match=r"w.safetensors is not a safetensors file, or is damaged: .* again\.$"):
        read_torch_resnet(tmp_path / "w.safetensors", "resnet18", width_factor=NARROW)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bn1.bias": None, "layer4.1.conv2.weight": None}, ["missing", "bn1.bias", "layer4.1.conv2.weight"]),
        ({"head.weight": np.zeros(3, np.float32)}, ["unknown head.weight"]),
        (
            {
                "bn1.weight": np.zeros(9, np.float32),
                "layer1.0.conv1.weight": np.zeros((8, 8, 5, 5), np.float32),
                "conv1.bias": np.zeros(8, np.float32),
                "layer2.0.bn1.bias": None,
            },
            [
                "bn1.weight must be [8], got [9]",
                "layer1.0.conv1.weight must be [8, 8, 3, 3], got [8, 8, 5, 5]",
                "unknown conv1.bias",
                "missing layer2.0.bn1.bias",
            ],
        ),
        ({"conv1.weight": np.zeros((8, 4, 7, 7), np.float32)}, ["conv1.weight must be [8, 3, 7, 7], got [8, 4, 7, 7]"]),
        ({"bn1.running_var": np.full(8, np.nan, np.float32)}, ["bn1.running_var has numbers that are not finite"]),
        ({"layer4.1.conv3.weight": np.zeros(1, np.float32)}, ["2, 2, 2, 2 bottleneck blocks, which is none of"]),
        ({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, ["64 features in conv1 (width_factor 1)"]),
    ],
)
def test_weights_that_do_not_fit_are_all_named(changes, said, tmp_path):
    save_file(small_arrays(**changes), tmp_path / "w.safetensors")
    with pytest.raises(InputError) as told:
        read_torch_resnet(tmp_path / "w.safetensors", "resnet18", width_factor=NARROW)
    for words in said:
        assert words in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("arch", ["resnet34", "resnet50"])
def test_another_architecture_is_recognised(arch, tmp_path):
    save_file(small_arrays(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=f"looks like a resnet18; the encoder is a {arch}"):
        read_torch_resnet(tmp_path / "w.safetensors", arch, width_factor=NARROW)


def test_other_files_are_bad_input(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match=r"The file .* does not exist"):
        read_torch_resnet(path, "resnet18")
    with pytest.raises(InputError, match=r"The file .* does not exist"):
        read_torch_resnet(tmp_path, "resnet18")
    path.write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="not a safetensors file, or is damaged"):
        read_torch_resnet(path, "resnet18")
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(InputError, match=r"must end in \.safetensors, \.pth, \.pt, "):
        read_torch_resnet(tmp_path / "w.h5", "resnet18")
    save_file({"visual.proj": np.zeros(3, np.float32)}, path)
    with pytest.raises(InputError, match=r"no ResNet .*\(it begins with visual\.proj\): save only its encoder"):
        read_torch_resnet(path, "resnet18")
    save_file(small_arrays(), path)
    with pytest.raises(InputError, match=r"3 input channel\(s\)"):
        load_torch_resnet(
            path, "resnet18", mean=0, std=1, width_factor=NARROW, trained=Normalisation(mean=(0.5,), std=(0.5,))
        )


def assert_reads_as(path, arrays):
    """A file is read as one of these arrays under torchvision's names."""
    save_file(arrays, path.parent / "bare.safetensors")
    read, bare = (
        read_torch_resnet(file, "resnet18", width_factor=NARROW) for file in (path, path.parent / "bare.safetensors")
    )
    assert_same_bits(read, bare)


PREFIXES = [
    *("module.", "_orig_mod.", "module._orig_mod.", "backbone.", "encoder.", "model.", "net.", "a.b.c."),
    *("module.encoder_q.", "module.base_encoder.", "backbone_online."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_that_leaves_a_whole_network_is_taken_off(prefix, tmp_path):
    arrays = small_arrays()
    beside = {"queue": np.zeros((4, 8), np.float32), "projector.0.weight": np.zeros((4, 8), np.float32)}
    beside[f"{prefix}fc.0.weight"] = beside[f"{prefix}fc.2.weight"] = np.zeros((4, 8), np.float32)
    average = prefix.replace("encoder_q", "encoder_k").replace("base_encoder", "momentum_encoder")
    if average != prefix:  # the moving average comes first, and is another
        beside |= {f"{average}{name}": array + 1 for name, array in arrays.items()}
    save_file({**beside, **{f"{prefix}{name}": array for name, array in arrays.items()}}, tmp_path / "w.safetensors")
    assert_reads_as(tmp_path / "w.safetensors", arrays)


def test_layers_of_a_sequential_behind_a_prefix(tmp_path):
    places = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    arrays = small_arrays()
    named = {
        name.replace(name.split(".")[0], f"backbone.{places[name.split('.')[0]]}", 1): a for name, a in arrays.items()
    }
    save_file(named, tmp_path / "w.safetensors")
    assert_reads_as(tmp_path / "w.safetensors", arrays)


def test_two_networks_are_not_guessed_between(tmp_path):
    both = {f"{prefix}{name}": array for prefix in ("student.", "teacher.") for name, array in small_arrays().items()}
    save_file(both, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"has 2 networks, under 'student\.', 'teacher\.'. Save only the one"):
        read_torch_resnet(tmp_path / "w.safetensors", "resnet18", width_factor=NARROW)


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.pth.tar", "w.ckpt", "w.bin", "w.PTH", "W.CKPT", "w.Safetensors"])
def test_endings_of_weights(name, tmp_path, monkeypatch):
    arrays = small_arrays()
    (tmp_path / name).touch()
    if name.lower().endswith("tensors"):
        save_file(arrays, tmp_path / name)
    monkeypatch.setattr(weights, "read_torch_zip", lambda path: {"epoch": 3, "model_state_dict": arrays})
    assert_reads_as(tmp_path / name, arrays)


def test_the_same_weights_are_the_same_file(tmp_path):
    variables = random_variables()
    for number in range(12):
        save_torch_resnet(tmp_path / f"{number}", variables, mean=0.2, std=0.3)
    files = {(tmp_path / f"{number}").read_bytes() for number in range(12)}
    assert len(files) == 1
    data = files.pop()
    header = int.from_bytes(data[:8], "little")
    assert header % 8 == 0
    with safe_open(tmp_path / "0", "np") as file:
        assert list(json.loads(data[8 : 8 + header])["__metadata__"]) == sorted(file.metadata())
        written = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = to_torch(variables)
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[name], expected[name]) for name in expected)
