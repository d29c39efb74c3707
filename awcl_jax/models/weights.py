"""Weights of an encoder under torchvision's names: read for a grey encoder, and written for other programs.

    torchvision                      here
    layer1.0.conv1.weight [o,i,h,w]  params       layer1_0 / conv1 / kernel [h,w,i,o]
    layer1.0.bn1.weight, bias        params       layer1_0 / bn1 / scale, bias
    layer1.0.bn1.running_mean, _var  batch_stats  layer1_0 / bn1 / mean, var
    layer1.0.downsample.0, .1        (as these)   layer1_0 / downsample_conv, downsample_bn

timm uses the same names for its plain ResNets. The published AWCL code wraps torchvision's layers in a Sequential
(`features.0` is conv1, `features.4` layer1) and keeps its projection as `l1` and `l2`.

Self-supervision programs wrap the network in another: its names then begin with a prefix such as `module.`,
`_orig_mod.`, `backbone.` or `module.encoder_q.`. A prefix that leaves a complete network is removed, and other names
(heads, queues) are left out. Of two networks, one that learns and its moving average, the one that learns is used.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors
from flax import traverse_util
from jaxtyping import Float, PyTree
from safetensors.numpy import save

from awcl_jax.models.resnet import STAGES, make_resnet
from awcl_jax.models.shapes import variable_shapes
from awcl_jax.models.torch_zip import read_torch_zip
from awcl_jax.runtime.errors import InputError

_ZIPS = (".pth", ".pt", ".pth.tar", ".ckpt", ".bin")
FILES = (".safetensors", *_ZIPS)
"""Endings of files with PyTorch weights, in either case."""

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_AWCL_LAYERS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# Heads, including one of two layers, and counters that nothing reads.
_IGNORED = re.compile(r"(fc(\.\d+)?|l1|l2)\.(weight|bias)|.*\.num_batches_tracked")
_PARALLEL = "module."  # of torch.nn.DataParallel
_AVERAGE = re.compile(r"(^|[._])(k|momentum|target|ema)([._]|$)")  # in the prefix of a moving average
NORMALISATION = "awcl_jax.normalisation"
"""Key of the input's normalisation in the metadata of the files that we write."""


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """How a network's input was made from grey from 0 to 1, channel by channel: (grey - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Of torchvision's weights, most of timm's, and the published AWCL code."""


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """An encoder from a file.

    Attributes:
      variables: `params` in float32.
      title: what the file is, such as "DINOv2 ViT-S/14".
      left_out: its names that are not used, in a few words; "" if all are.
    """

    variables: dict[str, PyTree]
    title: str
    left_out: str


def load_torch_resnet(
    path: str | os.PathLike[str],
    arch: str,
    *,
    mean: float,
    std: float,
    width_factor: float = 1.0,
    trained: Normalisation | None = None,
) -> dict[str, PyTree]:
    """Return variables of a grey encoder from a file of PyTorch weights, whose first kernels fold into one channel.

    The file's network was trained on channels x_c = (grey_c - mean_c) / std_c. An ultrasound frame has one grey g,
    which is each grey_c, and comes to our encoder as n = (g - mean) / std, so that x_c = a_c n + b_c with

        a_c = std / std_c,    b_c = (mean - mean_c) / std_c
        sum_c W_c * x_c = (sum_c a_c W_c) * n + sum_c b_c (W_c * 1)

    where * is the convolution conv1. The first bracket is the grey kernel. The second sum is a number per feature and
    goes into the running mean of bn1. Hence the encoder's features are those of the file's network on the frame
    copied into its channels, with their normalisation:

    - exactly (up to rounding) if every b_c is 0, that is if it was trained with `mean` for all channels;
    - otherwise except at the edge of the frame. Both pad conv1 with zeros: there the mean grey of each channel, here
      `mean`, and no single grey is all of them. This affects the two outermost rows and columns of conv1's maps. With
      ImageNet's statistics use mean=0.449 and std=0.226 (their averages; `config.augment`): the features of 15 frames
      of FETAL_PLANES_DB by ImageNet's ResNet-50 at 224 pixels then differ by 4% of their length on average, and by 10%
      with 0.17 and 0.18; those of two frames differ by 85%. `read_torch_resnet` keeps three channels, and nothing
      differs.

    Args:
      path: as in `read_torch_resnet`.
      arch: "resnet18", "resnet34" or "resnet50". The place of a ResNet-50's strides does not show in its weights:
        torchvision's are for `make_resnet(strides="v1.5")`.
      mean: of grey from 0 to 1, subtracted from the encoder's frames (`config.augment.mean`).
      std: likewise, divided by.
      width_factor: of the encoder (`config.model.width_factor`); 1 for all published weights.
      trained: normalisation that the file's network was trained with. By default that stored by `awcl_jax.export`, else
        ImageNet's for three channels, and `mean`, `std` for one, whose weights then stay bit for bit.

    Returns:
      `params` and `batch_stats` in float32 of `make_resnet(arch, width_factor=width_factor)` for frames [b, h, w, 1].

    Raises:
      InputError, OSError: as `read_torch_resnet`; `trained` has another number of channels.
    """
    arrays, metadata = _read(Path(path))
    variables = _to_flax(arrays, Path(path), arch, width_factor)
    kernel = variables["params"]["conv1"]["kernel"]
    channels = kernel.shape[2]
    folded = normalisation_of(path, metadata, trained, channels=channels, mean=mean, std=std)
    if folded:
        grey, shift = fold_channels(kernel, folded, mean=mean, std=std)
        running = variables["batch_stats"]["bn1"]
        running["mean"] = (running["mean"] - shift).astype(np.float32)
        variables["params"]["conv1"]["kernel"] = grey.astype(np.float32)
    return variables


def read_torch_resnet(path: str | os.PathLike[str], arch: str, *, width_factor: float = 1.0) -> dict[str, PyTree]:
    """Return variables of an encoder from a file of PyTorch weights, with the file's input channels.

    Args:
      path: `.safetensors`, or `.pth`, `.pt`, `.pth.tar`, `.ckpt`, `.bin` of `torch.save` (of a state dict; nothing in
        it is run, see `awcl_jax.models.torch_zip`), with the names of torchvision, of timm or of the published AWCL
        code, also under `state_dict` or `model` and behind a common prefix. Classifiers and projections are left out.
      arch: "resnet18", "resnet34" or "resnet50".
      width_factor: of the encoder; 1 for all published weights.

    Returns:
      `params` and `batch_stats` in float32 of `make_resnet(arch, width_factor=width_factor)`, for frames
      [b, h, w, 3] or [b, h, w, 1], normalised as the file's network was trained.

    Raises:
      InputError: the file does not exist, has another format, or is damaged; it has another architecture or width (the
        message names it); names are missing, unknown, or of another shape (all are listed).
      OSError: it cannot be read.
    """
    return _to_flax(_read(Path(path))[0], Path(path), arch, width_factor)


def to_torch(variables: Mapping[str, PyTree]) -> dict[str, np.ndarray]:
    """Return variables of an encoder under torchvision's names and in PyTorch's layout (kernels [out, in, h, w])."""
    arrays = {}
    for address, leaf in traverse_util.flatten_dict(dict(variables)).items():
        array = np.asarray(leaf)
        arrays[_torch_name(address)] = np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array)
    return arrays


def save_torch_resnet(
    path: Path, variables: Mapping[str, PyTree], *, mean: float, std: float, channels: int = 1
) -> None:
    """Write a grey encoder as safetensors under torchvision's names; `load_torch_resnet` reads it back bit for bit.

    Args:
      path: the file.
      variables: `params` and `batch_stats` of the encoder.
      mean: of grey from 0 to 1, subtracted from the encoder's frames.
      std: likewise, divided by.
      channels: of conv1: 1 as trained, or 3 for programs that need three, with a third of the kernel each, for the same
        normalised frame in all three.

    Raises:
      OSError: the file cannot be written.
    """
    arrays = to_torch(variables)
    arrays["conv1.weight"] = in_channels(arrays["conv1.weight"], channels)
    write_safetensors(path, arrays, mean=mean, std=std, channels=channels)


def in_channels(kernel: Float[np.ndarray, "o 1 h w"], channels: int) -> Float[np.ndarray, "o channels h w"]:
    """Return a first kernel for programs that need more channels, the same grey in each; for one, the same bits."""
    return kernel if channels == 1 else np.repeat(kernel / channels, channels, axis=1).astype(np.float32)


def write_safetensors(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    mean: float,
    std: float,
    channels: int,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the arrays of an encoder by PyTorch's names, with the normalisation of its input in the metadata.

    Args:
      path: the file.
      arrays: by name.
      mean: of grey from 0 to 1, subtracted from the encoder's frames.
      std: likewise, divided by.
      channels: of the first kernel.
      metadata: further entries.

    Raises:
      OSError: the file cannot be written.
    """
    normalisation = Normalisation((mean,) * channels, (std,) * channels)
    # Hugging Face's libraries look for "pt".
    written = {"format": "pt", NORMALISATION: json.dumps(dataclasses.asdict(normalisation)), **metadata}
    # Not by save_file, whose files only their owner can read, whatever the umask.
    path.write_bytes(_ordered(save(dict(arrays), written)))


def fold_channels(
    kernel: Float[np.ndarray, "h w c o"], trained: Normalisation, *, mean: float, std: float
) -> tuple[Float[np.ndarray, "h w 1 o"], Float[np.ndarray, " o"]]:
    """Return a first kernel for grey, and what its output gains by the means; see `load_torch_resnet`. In float64.

    Args:
      kernel: for the channels of `trained`.
      trained: normalisation of the input that the kernel was trained with.
      mean: of grey from 0 to 1, subtracted from the encoder's frames.
      std: likewise, divided by.
    """
    kernel, stds = np.asarray(kernel, np.float64), np.array(trained.std)
    shift = np.einsum("hwco,c->o", kernel, (mean - np.array(trained.mean)) / stds)
    return np.einsum("hwco,c->hwo", kernel, std / stds)[:, :, None], shift


def normalisation_of(
    path: object,
    metadata: Mapping[str, Any],
    trained: Normalisation | None,
    *,
    channels: int,
    mean: float,
    std: float,
    usual: Normalisation = IMAGENET,
) -> Normalisation | None:
    """Return the normalisation to fold into a file's first kernel; None if the kernel is for our frames already.

    Args:
      path: of the file, for messages.
      metadata: of the file, from `read_content`.
      trained: given by the user; by default that stored in the file, else `usual`, or ours for one channel.
      channels: of the first kernel.
      mean: of grey from 0 to 1, subtracted from the encoder's frames.
      std: likewise, divided by.
      usual: of three channels.

    Raises:
      InputError: it has another number of channels.
    """
    ours = Normalisation((mean,) * channels, (std,) * channels)
    trained = trained or metadata.get(NORMALISATION) or (ours if channels == 1 else usual)
    if {len(trained.mean), len(trained.std)} != {channels}:
        raise InputError(
            f"{path} has {channels} input channel(s), so its normalisation must have as many; got {trained.mean}, "
            f"{trained.std}."
        )
    return trained if channels > 1 or trained != ours else None


def _ordered(data: bytes) -> bytes:
    """Return a safetensors file with its metadata sorted: the library's order is random, so no two files were equal."""
    header, arrays = data[8 : 8 + int.from_bytes(data[:8], "little")], data[8 + int.from_bytes(data[:8], "little") :]
    fields = json.loads(header)
    fields["__metadata__"] = dict(sorted(fields["__metadata__"].items()))
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + arrays


def read_content(path: Path) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Return the content of a file of weights, and its metadata.

    Args:
      path: of one of the kinds in FILES.

    Returns:
      Names to arrays and, from a file of `torch.save`, other things; and the metadata of safetensors, empty for others,
      with a `Normalisation` under NORMALISATION if a file of ours states it.

    Raises:
      InputError: the file does not exist, has another format, or is damaged.
      OSError: it cannot be read.
    """
    if not path.is_file():
        raise InputError(f"The file {path} does not exist.")
    name = path.name.lower()
    if name.endswith(".safetensors"):
        return _read_safetensors(path)
    if not name.endswith(_ZIPS):
        raise InputError(f"A file of weights must end in {', '.join(FILES)}; got {path}.")
    return read_torch_zip(path), {}


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of a file by torchvision's names, and its metadata."""
    content, metadata = read_content(path)
    for outer in ("state_dict", "model", "model_state_dict"):
        if isinstance(content.get(outer), dict):
            content = content[outer]
    return _named(content, path), metadata


def _read_safetensors(path: Path) -> tuple[dict[Any, Any], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        normalisation = metadata.pop(NORMALISATION, None)
        fields = None if normalisation is None else dict(json.loads(normalisation))
        trained = Normalisation(**{k: tuple(map(float, v)) for k, v in fields.items()}) if fields else None
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise InputError(f"{path} is not a safetensors file, or is damaged: {error}. Download it again.") from None
    return arrays, metadata | ({NORMALISATION: trained} if trained else {})


def _named(content: Mapping[Any, Any], path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a dictionary by torchvision's names.

    Raises:
      InputError: it has several networks, and the choice is ambiguous.
    """
    named = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, np.ndarray)}
    prefix = _prefix(named, path)
    arrays = {}
    for name, value in named.items():
        if not name.startswith(prefix):
            continue
        name = _plain(name.removeprefix(prefix or _PARALLEL))
        if not _IGNORED.fullmatch(name):
            arrays[name] = value
    return arrays


def _prefix(names: Mapping[str, np.ndarray], path: Path) -> str:
    """Return the prefix of the only complete network among these names; empty if there is none, or no prefix."""
    first = re.compile(r"(.*?)(conv1|(features\.)?0)\.weight")
    beginnings = {found[1] for name in names if (found := first.fullmatch(name)) and names[name].ndim == 4}
    prefixes = sorted(prefix for prefix in beginnings if _is_whole(names, prefix))
    if len(learning := [prefix for prefix in prefixes if not _AVERAGE.search(prefix)]) == 1:
        prefixes = learning
    if not prefixes or "" in prefixes:
        return ""
    if len(prefixes) > 1:
        raise InputError(
            f"{path} has {len(prefixes)} networks, under {', '.join(map(repr, prefixes))}. Save only the one you need, "
            "without the prefix."
        )
    return prefixes[0]


def _is_whole(names: Mapping[str, np.ndarray], prefix: str) -> bool:
    """Return whether the names after a prefix are those of a known ResNet."""
    inside = {_plain(name.removeprefix(prefix)): value for name, value in names.items() if name.startswith(prefix)}
    stages, bottleneck = _architecture(inside)
    return any((stages, bottleneck) == (of, arch == "resnet50") for arch, of in STAGES.items())


def _plain(name: str) -> str:
    """Return torchvision's name for one of a network in a Sequential; any other name unchanged."""
    part = re.match(r"(?:features\.)?(\d+)\.", name)
    return f"{_AWCL_LAYERS[part[1]]}.{name[part.end() :]}" if part and part[1] in _AWCL_LAYERS else name


def _to_flax(arrays: Mapping[str, np.ndarray], path: Path, arch: str, width_factor: float) -> dict[str, PyTree]:
    model = make_resnet(arch, width_factor=width_factor)
    if (found := _architecture(arrays)) != (STAGES[arch], arch == "resnet50"):
        raise InputError(f"{path} {_likeness(arrays, found)}; the encoder is a {arch}.")
    first = arrays.get("conv1.weight", np.empty((0, 0)))
    if first.ndim == 4 and first.shape[0] != model.width:
        raise InputError(
            f"{path} has {first.shape[0]} features in conv1 (width_factor {first.shape[0] / 64:g}), the encoder "
            f"{model.width} (width_factor {width_factor:g}). Use the width_factor of the file."
        )
    channels = 1 if first.shape[1:2] == (1,) else 3
    shapes = traverse_util.flatten_dict(variable_shapes(model, 64, channels))
    wanted = {address: leaf.shape for address, leaf in shapes.items()}
    if problems := list(_problems(arrays, {_torch_name(address): shape for address, shape in wanted.items()})):
        raise InputError(f"{path} does not fit a {arch}: {'; '.join(problems)}.")
    return traverse_util.unflatten_dict({address: _from_torch(arrays[_torch_name(address)]) for address in wanted})


def _torch_name(address: tuple[str, ...]) -> str:
    collection, *modules, leaf = address
    modules = [re.sub(r"^(layer\d)_", r"\1.", module) for module in modules]
    modules = [{"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}.get(m, m) for m in modules]
    return ".".join([*modules, _LEAVES[collection, leaf]])


def _from_torch(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array, np.float32)


def _architecture(arrays: Mapping[str, np.ndarray]) -> tuple[tuple[int, ...], bool]:
    """Return the blocks in each stage, and whether they are bottlenecks, from the names."""
    blocks = {(int(m[1]), int(m[2])) for name in arrays if (m := re.match(r"layer(\d+)\.(\d+)\.", name))}
    stages = tuple(sum(stage == s for s, _ in blocks) for stage in sorted({s for s, _ in blocks}))
    return stages, any(re.fullmatch(r"layer\d+\.\d+\.conv3\.weight", name) for name in arrays)


def _likeness(arrays: Mapping[str, np.ndarray], found: tuple[tuple[int, ...], bool]) -> str:
    stages, bottleneck = found
    if not stages:
        names = ", ".join(list(arrays)[:3]) or "no names of weights"
        return (
            f"has no ResNet by torchvision's names, with or without a prefix (it begins with {names}): save only its "
            "encoder"
        )
    for arch, known in STAGES.items():
        if (stages, bottleneck) == (known, arch == "resnet50"):
            return f"looks like a {arch}"
    kind = "bottleneck" if bottleneck else "basic"
    return f"has stages of {', '.join(map(str, stages))} {kind} blocks, which is none of {', '.join(STAGES)}"


def _problems(arrays: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    if missing := [name for name in wanted if name not in arrays]:
        yield f"missing {', '.join(missing)}"
    if unknown := [name for name in arrays if name not in wanted]:
        yield f"unknown {', '.join(unknown)}"
    for name in (name for name in wanted if name in arrays):
        has, needs = arrays[name].shape, wanted[name]
        if len(needs) == 4:
            needs = (needs[3], needs[2], needs[0], needs[1])
        if has != needs:
            yield f"{name} must be {list(needs)}, got {list(has)}"
        elif not np.isfinite(arrays[name]).all():
            yield f"{name} has numbers that are not finite"
