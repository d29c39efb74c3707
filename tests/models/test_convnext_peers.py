"""Files of other libraries against these libraries: the same features of a grey frame copied into three channels."""

import functools
import re

import jax
import numpy as np
import pytest

from awcl_jax.models.convnext import ConvNeXt
from awcl_jax.models.convnext_weights import convnext_to_torch, load_torch_convnext
from awcl_jax.models.weights import IMAGENET

pytestmark = [pytest.mark.slow, pytest.mark.peers]
torch = pytest.importorskip("torch")

from tests.helpers.torch_vits import randomise  # noqa: E402

MEAN, STD = 0.17, 0.18  # ours, of no library
DEPTHS, WIDTH = (1, 1, 2, 1), 8
DIMS = tuple(WIDTH * 2**stage for stage in range(4))


def of_timm(*, second=False, channels=3):
    convnext = pytest.importorskip("timm.models.convnext")
    more = {"use_grn": True, "ls_init_value": None} if second else {}
    network = convnext.ConvNeXt(in_chans=channels, num_classes=0, depths=DEPTHS, dims=DIMS, **more)
    return randomise(network), network.state_dict()


FACEBOOK = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d)\.blocks\.(\d)\.", r"stages.\1.\2."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc([12])\.", r".pwconv\1."),
    (r"\.mlp\.grn\.weight", ".grn.gamma"),
    (r"\.mlp\.grn\.bias", ".grn.beta"),
    (r"^head\.norm\.", "norm."),
)


def of_facebook(*, second=False):
    """Return timm's network and its weights by Facebook's names, which timm itself reads, to show that they are."""
    convnext = pytest.importorskip("timm.models.convnext")
    network, timms = of_timm(second=second)
    named = {}
    for name, value in timms.items():
        for pattern, becomes in FACEBOOK:
            name = re.sub(pattern, becomes, name)
        named[name] = value.reshape(1, 1, 1, -1) if ".grn." in name else value
    named |= {"head.weight": torch.zeros(5, DIMS[-1]), "head.bias": torch.zeros(5)}
    read = convnext.checkpoint_filter_fn(dict(named), network)
    network.load_state_dict({name: value for name, value in read.items() if not name.startswith("head.fc.")})
    return network, named


def of_torchvision():
    convnext = pytest.importorskip("torchvision.models.convnext")
    outs = (*DIMS[1:], None)
    settings = [convnext.CNBlockConfig(*of) for of in zip(DIMS, outs, DEPTHS, strict=True)]
    network = randomise(convnext.ConvNeXt(settings, num_classes=5))
    weights = dict(network.state_dict())
    network.classifier[2] = torch.nn.Identity()
    return network, weights


class Pooled(torch.nn.Module):
    """A network of transformers that returns its features alone."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, frames):
        return self.network(frames).pooler_output


def of_transformers(kind, folder):
    """Return a network of transformers, and the file that it saves of it."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(hidden_sizes=list(DIMS), depths=list(DEPTHS))
    network = randomise(getattr(transformers, f"{kind}Model")(config))
    network.save_pretrained(folder)
    return Pooled(network), folder / "model.safetensors"


PEERS = {
    "timm": of_timm,
    "timm V2": functools.partial(of_timm, second=True),
    "Facebook": of_facebook,
    "Facebook V2": functools.partial(of_facebook, second=True),
    "torchvision": of_torchvision,
}


def grey_frames(rows, columns):
    return np.random.default_rng(0).uniform(size=(3, rows, columns)).astype(np.float32)


def our_features(path, grey, *, second):
    model = ConvNeXt(DEPTHS, WIDTH, second)
    loaded = load_torch_convnext(path, model, mean=MEAN, std=STD)
    encode = jax.jit(lambda x: model.apply(loaded.variables, x, train=False))
    return np.asarray(encode(((grey - MEAN) / STD)[..., None].astype(np.float32))), loaded


def features_in_colour(network, grey):
    """Return a library's features of the frames, copied into the three channels that it was trained with."""
    channels = [(grey - mean) / std for mean, std in zip(IMAGENET.mean, IMAGENET.std, strict=True)]
    with torch.no_grad():
        return network.eval()(torch.tensor(np.stack(channels, axis=1).astype(np.float32))).numpy()


def assert_same_features(found, expected):
    apart = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert apart.max() < 1e-4


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (75, 50)])
@pytest.mark.parametrize("name", PEERS)
def test_features_are_those_of_the_library(name, rows, columns, tmp_path):
    network, weights = PEERS[name]()
    torch.save({"model": weights}, tmp_path / "w.pth")
    grey = grey_frames(rows, columns)
    found, loaded = our_features(tmp_path / "w.pth", grey, second="V2" in name)
    assert_same_features(found, features_in_colour(network, grey))
    assert loaded.title.startswith(f"{name.split()[0]} ConvNeXt")
    assert loaded.left_out == {"Facebook": "model.* (2)", "torchvision": "model.* (2)"}.get(name.split()[0], "")


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("kind", ["ConvNext", "ConvNextV2", "DINOv3ConvNext"])
def test_what_transformers_saves_is_read(kind, tmp_path):
    network, path = of_transformers(kind, tmp_path)
    grey = grey_frames(64, 96)
    found, loaded = our_features(path, grey, second="V2" in kind)
    assert_same_features(found, features_in_colour(network, grey))
    assert loaded.left_out == ""


@pytest.mark.parametrize("second", [False, True])
def test_what_we_write_is_loaded_strictly_by_timm(second, tmp_path):
    timm = pytest.importorskip("timm")
    torch.save(of_timm(second=second)[1], tmp_path / "w.pth")
    grey = grey_frames(48, 40)
    found, loaded = our_features(tmp_path / "w.pth", grey, second=second)
    arch = "convnextv2_tiny" if second else "convnext_tiny"
    network = timm.create_model(arch, in_chans=1, num_classes=0, depths=DEPTHS, dims=DIMS)
    arrays = convnext_to_torch(loaded.variables)
    network.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()}, strict=True)
    with torch.no_grad():
        expected = network.eval()(torch.tensor(((grey - MEAN) / STD).astype(np.float32))[:, None])
    assert_same_features(found, expected.numpy())
