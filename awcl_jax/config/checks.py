"""Rules for configurations of both kinds of run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from awcl_jax.config.fields import augmentation, is_number, shown
from awcl_jax.data.reader import LARGEST_FRAME
from awcl_jax.ingest import prepare
from awcl_jax.models import convnext, encoders, resnet, vit
from awcl_jax.models.vit import ViTOptions
from awcl_jax.runtime import sharding
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import loggers, optim

# Above what any machine computes with in one step, far below what ends a process that tries.
MOST_FRAMES = 2**20  # in a batch
MOST_FEATURES = 2**16  # in an embedding, or a layer of the projection
_MOST_THREADS = 1024
# The augmentations that are off by default, by two fields: the others are on, and either field turns them off.
_OFF_UNLESS_BOTH = {
    "haze_probability": ("haze",),
    "despeckle_probability": ("despeckle",),
    "jitter_probability": ("jitter_brightness", "jitter_contrast"),
    "erase_probability": ("erase",),
    "greys_probability": ("greys",),
}
_NARROWEST = 1 / 64  # of the width of the paper: a ResNet has one feature in its first layer, as with any less


def common_problems(config: ConfigDict, devices: int) -> Iterator[str]:
    """Yield a sentence for each problem with the fields that every kind of run has."""
    yield from unknown_names(
        config,
        {
            "data.dataset": tuple(prepare.BUILDERS),
            "data.preset": prepare.PHANTOM_PRESETS,
            "model.arch": encoders.ARCHS,
            "model.init_input": encoders.INPUTS,
            "model.strides": resnet.STRIDES,
            "model.dtype": ("float32", "bfloat16"),
            "optim.name": optim.OPTIMISERS,
            "optim.schedule": optim.SCHEDULES,
            "train.mapping": sharding.MAPPINGS,
            "train.logger": loggers.LOGGERS,
        },
    )
    yield from broken_rules(
        config,
        (
            "name",
            lambda x: x != "" and "/" not in x,
            "non-empty and without a /, because it is part of a folder's name",
        ),
        ("seed", lambda x: x >= 0, "0 or more"),
        ("seed", lambda x: x < 2**31, f"below {2**31}, because a step takes it as a whole number of 32 bits"),
        ("data.size", lambda x: x >= 1, "at least 1 pixel"),
        ("data.size", lambda x: x <= LARGEST_FRAME, f"at most {LARGEST_FRAME} pixels"),
        ("data.val_share", lambda x: 0 < x < 1, "between 0 and 1"),
        ("data.cache_mb", lambda x: x >= 0, "0 or more"),
        ("data.disk_cache_gb", lambda x: x >= 0, "0 or more"),
        ("data.threads", lambda x: x >= 1, "at least 1"),
        ("data.threads", lambda x: x <= _MOST_THREADS, f"at most {_MOST_THREADS:,}"),
        ("sampler.batch_size", lambda x: x >= 2, "at least 2 frames"),
        ("sampler.batch_size", lambda x: x <= MOST_FRAMES, f"at most {MOST_FRAMES:,} frames"),
        (
            "model.width_factor",
            lambda x: x >= _NARROWEST,
            f"at least {_NARROWEST}, a feature in a ResNet's first layer",
        ),
        ("model.width_factor", lambda x: x <= resnet.WIDEST, f"at most {resnet.WIDEST}"),
        ("model.convnext.drop_path", lambda x: 0 <= x < 1, "from 0 to below 1"),
        ("optim.layer_decay", lambda x: 0 < x <= 1, "above 0 and at most 1"),
        ("optim.clip_norm", lambda x: x is None or x > 0, "above 0"),
        ("optim.learning_rate", lambda x: x > 0, "above 0"),
        ("optim.weight_decay", lambda x: x >= 0, "0 or more"),
        ("optim.warmup_steps", lambda x: x >= 0, "0 or more"),
        ("eval.batch_size", lambda x: x >= 1, "at least 1 frame"),
        ("eval.batch_size", lambda x: x <= MOST_FRAMES, f"at most {MOST_FRAMES:,} frames"),
        ("train.steps", lambda x: x >= 1, "at least 1"),
        ("train.steps", lambda x: x < 2**31, f"below {2**31}, because steps are counted in 32 bits"),
        ("train.log_every", lambda x: x >= 1, "at least 1"),
        ("train.bad_steps", lambda x: x >= 1, "at least 1"),
    )
    ranges = {
        name: value for name, value in config.augment.items() if isinstance(value, tuple | list) and name != "greys"
    }
    if wrong := [name for name, value in ranges.items() if not _is_range(value, off=name != "crop_aspect")]:
        yield f"config.augment.{wrong[0]} must be a range (least, greatest); got {shown(ranges[wrong[0]])}"
    elif not all(map(is_number, config.augment.greys)):
        yield f"config.augment.greys must be numbers from 0 to 1, ascending; got {shown(config.augment.greys)}"
    else:
        try:
            augmentation(config)
        except InputError as error:
            yield f"config.augment: {error}"
    yield from _encoder_problems(config)
    if config.sampler.batch_size % devices:
        yield (
            f"config.sampler.batch_size must be divisible by the {devices} devices; got {config.sampler.batch_size}, "
            f"try {max(1, round(config.sampler.batch_size / devices)) * devices}"
        )
    if config.augment.size > config.data.size:
        yield (
            f"config.augment.size must be at most config.data.size={config.data.size}, the size of the frames; "
            f"got {config.augment.size}"
        )
    if 0 < config.train.steps <= config.optim.warmup_steps:
        yield (
            f"config.optim.warmup_steps must be below config.train.steps={config.train.steps}; "
            f"got {config.optim.warmup_steps}"
        )


def _encoder_problems(config: ConfigDict) -> Iterator[str]:
    arch, blocks = config.model.arch, config.model.train_blocks
    options = ViTOptions(**config.model.vit.to_dict())
    problems = vit.option_problems(options)
    yield from (f"config.model.vit.{field} {rule}" for field, rule in problems)
    if arch not in encoders.BY_LAYER:
        for field, off in (("model.train_blocks", None), ("model.freeze_patches", False), ("optim.layer_decay", 1)):
            if (value := _get(config, field)) != off:
                yield (
                    f"config.{field} needs a vision transformer or a ConvNeXt ({', '.join(encoders.BY_LAYER)}); "
                    f"got {value} with {arch}"
                )
        return
    if arch in convnext.STAGES:
        depth = sum(convnext.STAGES[arch])
        if 1 <= config.augment.size < convnext.SMALLEST:
            yield (
                f"config.augment.size must be at least {convnext.SMALLEST} pixels for {arch}; got {config.augment.size}"
            )
    else:
        depth = vit.SIZES[arch][0]
        if not problems and config.augment.size % options.patch:
            yield f"config.augment.size {vit.size_rule(config.augment.size, options.patch)}"
    if blocks is not None and not 1 <= blocks <= depth:
        yield f"config.model.train_blocks must be from 1 to the {depth} blocks of {arch}; got {blocks}"


def idle_fields(config: ConfigDict) -> Iterator[str]:
    """Yield a sentence for each field that was set to no effect, because another one turns it off.

    These are no problems for `validate`: to set one of the two is how an augmentation is turned off, and older runs
    have such values.
    """
    for probability, names in _OFF_UNLESS_BOTH.items():
        drawn, ranges = config.augment[probability], [name for name in names if len(config.augment[name])]
        if ranges and not drawn:
            yield f"config.augment.{ranges[0]} has no effect: set config.augment.{probability}, which is 0"
        if drawn and not ranges:
            yield f"config.augment.{probability} has no effect: set config.augment.{names[0]}, which is off"
    for family, archs in (("vit", vit.SIZES), ("convnext", convnext.STAGES)):
        if config.model[family].drop_path and config.model.arch not in archs:
            yield f"config.model.{family}.drop_path has no effect: config.model.arch is {config.model.arch}"


def unknown_names(config: ConfigDict, known: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Yield a sentence for each of these fields whose value is not one of its names."""
    for field, names in known.items():
        if (value := _get(config, field)) not in names:
            yield f"config.{field} must be one of {', '.join(names)}; got {value!r}"


def broken_rules(config: ConfigDict, *rules: tuple[str, Callable[[Any], bool], str]) -> Iterator[str]:
    """Yield a sentence for each of these (field, rule for its value, the rule in words) that does not hold."""
    for field, holds, rule in rules:
        if not holds(value := _get(config, field)):
            yield f"config.{field} must be {rule}; got {value}"


def are_names(values: tuple[Any, ...]) -> bool:
    """Return whether all values are non-empty texts."""
    return all(isinstance(value, str) and value for value in values)


def _is_range(value: Sequence[Any], *, off: bool) -> bool:
    return len(value) in ((0, 2) if off else (2,)) and all(map(is_number, value))


def _get(config: ConfigDict, field: str) -> Any:
    for key in field.split("."):
        config = config[key]
    return config
