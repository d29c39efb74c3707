"""The default configuration, and everything that can be wrong with one.

Files in `configs/` change a few fields of `default_config()`; any field can be set on the command line
(`--config.train.steps=500`). `validate` looks at the whole before anything is read or compiled.
"""

import difflib
import itertools
import json
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from awcl_jax import anatomy, losses, optim, ring, sharding
from awcl_jax.augment import Augmentation
from awcl_jax.data import datasets, sampler, selection
from awcl_jax.errors import InputError
from awcl_jax.models import resnet

# What may change between the first start of a run and its resumption: none of it touches the numbers.
FREE_ON_RESUME = (
    "data.path",
    "data.cache_mb",
    "data.threads",
    "data.skip_unreadable",  # the data's fingerprint tells whether a frame was left out
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.bad_steps",
    "train.mapping",
    "report.pictures",
    "report.map_frames",
)


# What each host of a run may have its own way.
HOST_FIELDS = ("data.path", "data.unlabelled", "data.cache_mb", "data.threads")


def default_config() -> ConfigDict:
    """AWCL with fine anatomy on the phantom: minutes on a laptop's CPU."""
    config = ConfigDict()
    config.name = "fine"
    config.seed = 0

    config.positives = "anatomy"  # whom to pull together: anatomy (AWCL), scan (patient metadata), frame (SimCLR)
    config.granularity = "fine"  # of the anatomy: fine, coarse, or both as a weighted sum of the two losses
    config.anatomy_ratio = 1.0  # share of the labelled frames whose label pretraining may use

    config.data = ConfigDict()
    config.data.dataset = "phantom"  # a name in data.datasets.BUILDERS
    config.data.path = ""  # folder of the prepared dataset; the phantom is made in the user's cache folder
    config.data.preset = "default"  # of the phantom: default, tiny, heart, heart_tiny
    config.data.size = 96  # edge in pixels of the square that frames are read at
    config.data.unlabelled = ()  # folders of further prepared datasets, to pretrain on without labels
    config.data.mask_overlays = False  # set what lies outside of the sector, where machines write, to 0
    config.data.skip_unreadable = False  # leave out frames that cannot be read, for which all are read once before
    config.data.val_share = 0.15  # share of the training patients held out where the dataset has no `val` split
    config.data.cache_mb = 1024  # decoded frames are kept in memory when all fit into this
    config.data.threads = 2  # that read and decode

    config.sampler = ConfigDict()
    config.sampler.mode = "balanced"  # balanced: anatomies x scans; natural: each frame once an epoch
    config.sampler.batch_size = 32  # frames, over all devices; each is seen in two views
    config.sampler.anatomies = placeholder(int)  # in a balanced batch; as many as fit by default
    config.sampler.scans_per_anatomy = 4
    config.sampler.unlabelled_share = 0.25
    config.sampler.pairs = "frame"  # second view of the same frame, or of one from another scan: cross_scan

    config.augment = augmentation_fields(Augmentation(size=64))

    config.model = ConfigDict()
    config.model.arch = "resnet18"  # resnet18, resnet34, resnet50
    config.model.width_factor = 0.25  # of all layers; 1 is the paper's width
    config.model.strides = "v1.5"  # v1.5 as torchvision, v1 as He et al. (resnet50 only)
    config.model.dtype = "float32"  # float32, bfloat16
    config.model.remat = False  # compute each block again for its gradient: less memory, more time
    config.model.init = "random"  # random, or a file of PyTorch weights that the encoder starts from
    config.model.hidden = placeholder(int)  # width of the projection's hidden layer; the features' own by default
    config.model.embedding = 128

    config.loss = ConfigDict()
    config.loss.temperature = 0.1
    config.loss.block_size = placeholder(
        int
    )  # anchors whose similarities are held at a time; as many as fit by default
    config.loss.kernel = "auto"  # what computes its denominators: blocks (auto too), pallas
    config.loss.coarse_weight = 0.5  # share of the coarse anatomy's loss where granularity is both
    config.loss.exchange = "gather"  # how devices see each other's embeddings: gather, or ring, which holds fewer

    config.queue = ConfigDict()
    config.queue.size = 0  # keys of a momentum encoder to contrast with (MoCo v2); 0 for the batch's own two views
    config.queue.momentum = 0.99  # share of its old parameters that the momentum encoder keeps at each step

    config.optim = ConfigDict()
    config.optim.name = "adamw"  # adam, adamw, lars, sgd
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"  # cosine, constant
    config.optim.warmup_steps = 20
    config.optim.weight_decay = 1e-4
    config.optim.decay_all = False  # decay biases and normalisation, too
    config.optim.clip_norm = placeholder(float)

    config.train = ConfigDict()
    config.train.steps = 1000
    config.train.log_every = 10
    config.train.eval_every = 250
    config.train.checkpoint_every = 250
    config.train.bad_steps = 10  # in a row, whose loss or gradient is not finite, end the run; fewer are left out
    config.train.encode_chunks = 1  # parts that a batch is encoded in, for batches beyond the encoder's memory
    config.train.mapping = "shard_map"  # how the step spreads over devices: shard_map, pmap

    config.eval = ConfigDict()
    config.eval.granularity = "fine"  # of the anatomy that evaluators tell apart, whatever pretraining used
    config.eval.anatomies = ()  # names of those they tell apart; all by default
    config.eval.neighbours = 20  # that vote in kNN
    config.eval.batch_size = 64  # frames encoded at a time

    config.report = ConfigDict()
    config.report.pictures = True  # curves, montages and the map of embeddings; the page is written in any case
    config.report.map_frames = 600  # test frames in the map of embeddings; the page's has as many of the others
    return config


def validate(config: ConfigDict, *, devices: int = 1) -> None:
    """Check a whole configuration.

    Args:
      config: as from `default_config`, with changes.
      devices: number of devices that a batch is spread over.

    Raises:
      InputError: with every problem in one line.
    """
    refuse(wrong_types(config, default_config()))
    refuse(itertools.chain(common_problems(config, devices), _problems(config, devices)))


def refuse(problems: Iterable[str]) -> None:
    """Raise an InputError of these problems, in one line, if there are any."""
    if found := list(problems):
        raise InputError("; ".join(found))


def wrong_types(config: ConfigDict, default: ConfigDict, place: str = "config") -> Iterator[str]:
    """A sentence for each field that one of these configurations does not have, or whose value is of another kind.

    `ConfigDict` takes None for anything, and any list for any other.

    Args:
      config: as `default`, with changes.
      default: has all fields, with values of their kind.
      place: of both, for messages.
    """
    for name in sorted({*config.keys()} - {*default.keys()}):
        yield _no_field(name, default, place)
    for name, wanted in default.items():
        if name not in config:
            yield f"{place}.{name} is missing"
        elif isinstance(wanted, ConfigDict) and isinstance(config[name], ConfigDict):
            yield from wrong_types(config[name], wanted, f"{place}.{name}")
        elif not _fits(config[name], default, name):
            yield f"{place}.{name} is {_kind(default, name)}; got {_shown(config[name])}"


def common_problems(config: ConfigDict, devices: int) -> Iterator[str]:
    """What is wrong with the fields that every kind of run has; a sentence each."""
    yield from unknown_names(
        config,
        {
            "data.dataset": tuple(datasets.BUILDERS),
            "data.preset": datasets.PHANTOM_PRESETS,
            "model.arch": tuple(resnet.STAGES),
            "model.strides": resnet.STRIDES,
            "model.dtype": ("float32", "bfloat16"),
            "optim.name": optim.OPTIMISERS,
            "optim.schedule": optim.SCHEDULES,
            "train.mapping": sharding.MAPPINGS,
        },
    )
    yield from broken_rules(
        config,
        ("name", lambda x: x != "" and "/" not in x, "part of a folder's name, without a /"),
        ("seed", lambda x: x >= 0, "0 or more"),
        ("seed", lambda x: x < 2**32, f"below {2**32}, for of a larger one JAX takes the lower 32 bits"),
        ("data.size", lambda x: x >= 1, "at least 1 pixel"),
        ("data.val_share", lambda x: 0 < x < 1, "between 0 and 1"),
        ("data.cache_mb", lambda x: x >= 0, "0 or more"),
        ("data.threads", lambda x: x >= 1, "at least 1"),
        ("sampler.batch_size", lambda x: x >= 2, "at least 2 frames"),
        ("model.width_factor", lambda x: x > 0, "above 0"),
        ("model.width_factor", lambda x: x <= resnet.WIDEST, f"at most {resnet.WIDEST}"),
        ("optim.clip_norm", lambda x: x is None or x > 0, "above 0"),
        ("optim.learning_rate", lambda x: x > 0, "above 0"),
        ("optim.weight_decay", lambda x: x >= 0, "0 or more"),
        ("optim.warmup_steps", lambda x: x >= 0, "0 or more"),
        ("eval.batch_size", lambda x: x >= 1, "at least 1 frame"),
        ("train.steps", lambda x: x >= 1, "at least 1"),
        ("train.steps", lambda x: x < 2**31, f"below {2**31}, for they are counted in 32 bits"),
        ("train.log_every", lambda x: x >= 1, "at least 1"),
        ("train.bad_steps", lambda x: x >= 1, "at least 1"),
    )
    ranges = {name: value for name, value in config.augment.items() if isinstance(value, tuple | list)}
    if wrong := [name for name, value in ranges.items() if not _is_range(value, off=name != "crop_aspect")]:
        yield f"config.augment.{wrong[0]} must be a range (least, greatest); got {_shown(ranges[wrong[0]])}"
    else:
        try:
            augmentation(config)
        except InputError as error:
            yield f"config.augment: {error}"
    if config.sampler.batch_size % devices:
        yield (
            f"config.sampler.batch_size must divide by the {devices} devices; got {config.sampler.batch_size}, "
            f"try {max(1, round(config.sampler.batch_size / devices)) * devices}"
        )
    if config.augment.size > config.data.size:
        yield (
            f"config.augment.size, the crop, is larger than the frames it is cut from; got {config.augment.size} "
            f"pixels of config.data.size={config.data.size}"
        )
    if 0 < config.train.steps <= config.optim.warmup_steps:
        yield (
            f"config.optim.warmup_steps must be fewer than config.train.steps={config.train.steps}; "
            f"got {config.optim.warmup_steps}"
        )


def unknown_names(config: ConfigDict, known: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """A sentence for each of these fields whose value is none of its names."""
    for field, names in known.items():
        if (value := _get(config, field)) not in names:
            yield f"config.{field} is one of {', '.join(names)}; got {value!r}"


def broken_rules(config: ConfigDict, *rules: tuple[str, Callable[[Any], bool], str]) -> Iterator[str]:
    """A sentence for each of these (field, what must hold for its value, that in words) that does not hold."""
    for field, holds, rule in rules:
        if not holds(value := _get(config, field)):
            yield f"config.{field} must be {rule}; got {value}"


def are_names(values: tuple[Any, ...]) -> bool:
    """Whether these are texts, and none is empty."""
    return all(isinstance(value, str) and value for value in values)


def _problems(config: ConfigDict, devices: int) -> Iterator[str]:
    yield from unknown_names(
        config,
        {
            "positives": selection.POSITIVES,
            "granularity": selection.GRANULARITIES,
            "eval.granularity": anatomy.GRANULARITIES,
            "sampler.mode": sampler.MODES,
            "sampler.pairs": sampler.PAIRS,
            "loss.kernel": losses.KERNELS,
            "loss.exchange": ring.EXCHANGES,
        },
    )
    yield from broken_rules(
        config,
        ("anatomy_ratio", lambda x: 0 <= x <= 1, "a share from 0 to 1"),
        ("report.map_frames", lambda x: x >= 1, "at least 1"),
        ("sampler.anatomies", lambda x: x is None or x >= 1, "at least 1"),
        ("sampler.scans_per_anatomy", lambda x: x >= 2, "at least 2"),
        ("sampler.unlabelled_share", lambda x: 0 <= x < 1, "from 0 to below 1"),
        ("model.hidden", lambda x: x is None or x >= 1, "at least 1"),
        ("model.embedding", lambda x: x >= 2, "at least 2"),
        ("loss.temperature", lambda x: x > 0, "above 0"),
        ("loss.block_size", lambda x: x is None or x >= 1, "at least 1"),
        ("loss.coarse_weight", lambda x: 0 <= x <= 1, "a share from 0 to 1"),
        ("data.unlabelled", are_names, "folders"),
        ("eval.anatomies", are_names, "names"),
        ("queue.size", lambda x: x >= 0, "0 or more"),
        ("queue.momentum", lambda x: 0 <= x < 1, "from 0 to below 1"),
        ("train.encode_chunks", lambda x: x >= 1, "at least 1"),
        ("eval.neighbours", lambda x: x >= 1, "at least 1"),
        ("train.eval_every", lambda x: x >= 1, "at least 1"),
        ("train.checkpoint_every", lambda x: x >= 1, "at least 1"),
    )
    if config.sampler.batch_size // devices % max(config.train.encode_chunks, 1):
        yield (
            f"config.train.encode_chunks must divide the {config.sampler.batch_size // devices} frames that a device "
            f"gets of config.sampler.batch_size={config.sampler.batch_size}; got {config.train.encode_chunks}"
        )
    if 0 < config.queue.size < config.sampler.batch_size:
        yield (
            "config.queue.size must be 0 or at least config.sampler.batch_size="
            f"{config.sampler.batch_size}, for a queue holds whole batches; got {config.queue.size}"
        )
    if config.queue.size and config.loss.exchange == "ring":
        yield "config.loss.exchange='ring' passes a batch around; the queue of config.queue.size is on every device"
    if config.loss.kernel == "pallas" and config.loss.exchange == "ring":
        yield "config.loss.exchange='ring' meets its visitors in blocks; it takes config.loss.kernel='auto'"
    if config.loss.kernel == "pallas" and config.loss.block_size is not None:
        yield (
            "config.loss.kernel='pallas' has blocks of its own: leave config.loss.block_size unset; "
            f"got {config.loss.block_size}"
        )
    if config.positives == "frame" and (config.sampler.mode, config.sampler.pairs) != ("natural", "frame"):
        yield (
            "config.positives='frame' knows no labels: it takes config.sampler.mode='natural' and "
            f"config.sampler.pairs='frame'; got {config.sampler.mode!r} and {config.sampler.pairs!r}"
        )
    if config.positives == "scan" and config.sampler.pairs == "cross_scan":
        yield "config.positives='scan' pulls one scan together; config.sampler.pairs='cross_scan' contradicts it"


def augmentation_fields(options: Augmentation) -> ConfigDict:
    """An augmentation as part of a configuration, whose fields it describes; () stands for a range that is off."""
    return ConfigDict({name: () if value is None else value for name, value in vars(options).items()})


def augmentation(config: ConfigDict) -> Augmentation:
    """The `augment` part of a configuration as the augmentation takes it."""
    fields: dict[str, Any] = {name: None if value == () else value for name, value in config.augment.to_dict().items()}
    return Augmentation(**fields)


def dtype(config: ConfigDict) -> Any:
    """The type of the encoder's arithmetic."""
    return {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[config.model.dtype]


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """The configuration as plain values, as JSON would give them back."""
    return json.loads(json.dumps(config.to_dict()))


def from_dict(values: Mapping[str, Any], default: ConfigDict) -> ConfigDict:
    """The configuration that `to_dict` gave as plain values; a field that they do not have keeps its default.

    Args:
      values: fields by group, of plain values as JSON has them.
      default: of this kind of run, with all fields; it is changed.

    Raises:
      InputError: these are no fields of a configuration of this version, or are of another kind; with all such fields.
    """
    refuse(_lay_over(default, values, "config"))
    return default


def _lay_over(config: ConfigDict, values: Mapping[str, Any], place: str) -> Iterator[str]:
    """Sets what fits, and gives a sentence for each field that does not."""
    for name, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        if name not in config:
            yield _no_field(name, config, place)
        elif isinstance(config[name], ConfigDict) and isinstance(value, dict):
            yield from _lay_over(config[name], value, f"{place}.{name}")
        elif not _fits(value, config, name):
            yield f"{place}.{name} is {_kind(config, name)}; got {_shown(value)}"
        else:
            config[name] = value


_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a line of text",
    tuple: "a list, of numbers or of lines of text",
    ConfigDict: "a group of fields",
}


def _kind(default: ConfigDict, name: str) -> str:
    return _KINDS[default.get_type(name)] + (", or nothing" if default[name] is None else "")


def _fits(value: Any, default: ConfigDict, name: str) -> bool:
    """Whether a value is of this field's kind. Where there is nothing by default there may be nothing."""
    wanted = default.get_type(name)
    if value is None:
        return default[name] is None
    if wanted is int:
        return _is_number(value) and isinstance(value, int)
    if wanted is float:
        return _is_number(value)
    if wanted is str:
        return _is_line(value)
    if wanted is tuple:
        return isinstance(value, tuple | list) and (all(map(_is_line, value)) or all(map(_is_number, value)))
    return isinstance(value, wanted)


def _is_number(value: Any) -> bool:
    # True and False are whole numbers to Python. Of NaN the rules say more.
    most = 2**53 if isinstance(value, int) else 1e38  # what a float64 counts to, and what a float32 holds
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > most


def _is_range(value: Sequence[Any], *, off: bool) -> bool:
    return len(value) in ((0, 2) if off else (2,)) and all(map(_is_number, value))


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _no_field(name: str, default: ConfigDict, place: str) -> str:
    near = difflib.get_close_matches(str(name), default.keys(), n=1)
    hint = f"did you mean {place}.{near[0]}?" if near else f"there are {', '.join(default.keys())}"
    return f"{place} has no field {_shown(name)}: {hint}"


def _shown(value: Any) -> str:
    """A value in a few signs, on one line."""
    return reprlib.repr(value)


def changed_fields(
    old: dict[str, Any], new: dict[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
) -> list[str]:
    """Fields that decide a run's numbers and differ between two configurations (plain dicts): "field (old -> new)".

    A version that does not know a field yet has the numbers of the field's default, so that one that is not in `old` is
    taken for what it is in `defaults`.
    """
    before, after = deciding_fields(defaults) | deciding_fields(old), deciding_fields(new)
    return [
        f"{field} ({before.get(field)} -> {after.get(field)})"
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field)
    ]


def deciding_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that decide a run's numbers, by their names as `data.size`; paths and the like are not among them."""
    return {field: value for field, value in flattened(values) if field not in FREE_ON_RESUME}


def common_fields(config: ConfigDict) -> dict[str, Any]:
    """Fields that all processes of a run have in common, by their names as `config.data.size`."""
    return {f"config.{field}": value for field, value in flattened(to_dict(config)) if field not in HOST_FIELDS}


def flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of nested groups, by their names as `data.size`."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _get(config: ConfigDict, field: str) -> Any:
    for key in field.split("."):
        config = config[key]
    return config
