"""The default configuration of a downstream run, and everything that can be wrong with one.

`task` tells it from a pretraining run's (`awcl_jax.config`), of which it shares what both have.
"""

import itertools
from collections.abc import Iterator

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from awcl_jax.augment.options import Augmentation
from awcl_jax.config.checks import are_names, broken_rules, common_problems, unknown_names
from awcl_jax.config.fields import augmentation_fields, refuse, wrong_types
from awcl_jax.config.pretraining import default_config
from awcl_jax.data import anatomy

TASKS = ("planes", "segmentation")


def default_downstream_config() -> ConfigDict:
    """Classify the phantom's planes: minutes on a laptop's CPU."""
    pretraining = default_config()
    config = ConfigDict()
    config.name = "downstream_planes"
    config.seed = 0

    config.task = ConfigDict()
    config.task.kind = "planes"  # planes: which anatomy a frame shows; segmentation: of its pixels, by masks
    config.task.label_fraction = 1.0  # share of the labelled training frames that may be learnt from
    config.task.granularity = "fine"  # of the anatomy
    config.task.anatomies = ()  # names of those to tell apart; all by default
    config.task.empty_frames = True  # segment also frames whose mask shows nothing
    config.task.head = ()  # names in the masks that make up the head, whose circumference is measured; () for none

    config.encoder = ConfigDict()
    config.encoder.init = "random"  # random, a pretraining run, a checkpoint of one, or a file of PyTorch weights
    config.encoder.frozen = False  # train only what stands on the encoder

    config.data = pretraining.data
    del config.data.unlabelled
    config.sampler = ConfigDict()
    config.sampler.batch_size = 32  # frames, over all devices
    config.augment = augmentation_fields(Augmentation(size=64, crop_area=(0.5, 1.0)))

    config.model = pretraining.model
    del config.model.init, config.model.hidden, config.model.embedding

    config.optim = pretraining.optim
    config.optim.weight_decay = 1e-2

    config.train = ConfigDict()
    config.train.steps = 600
    config.train.log_every = 10
    config.train.validate_every = 50  # steps; each time a checkpoint, the best of which is tested
    config.train.patience = placeholder(int)  # validations without a better score that end it
    config.train.bad_steps = 10  # in a row, whose loss or gradient is not finite, end the run; fewer are left out
    config.train.mapping = "shard_map"  # how the step spreads over devices: shard_map, pmap

    config.eval = ConfigDict()
    config.eval.batch_size = 64  # frames that are predicted at a time

    config.report = ConfigDict()
    config.report.pictures = True  # curves, and the confusion matrix or overlays
    return config


def validate(config: ConfigDict, *, devices: int = 1) -> None:
    """Check a whole configuration.

    Args:
      config: as from `default_downstream_config`, with changes.
      devices: number of devices that a batch is spread over.

    Raises:
      InputError: with every problem in one line.
    """
    refuse(wrong_types(config, default_downstream_config()))
    refuse(itertools.chain(common_problems(config, devices), _problems(config)))


def _problems(config: ConfigDict) -> Iterator[str]:
    yield from unknown_names(config, {"task.kind": TASKS, "task.granularity": anatomy.GRANULARITIES})
    yield from broken_rules(
        config,
        ("task.label_fraction", lambda x: 0 < x <= 1, "a share above 0, up to 1"),
        ("task.anatomies", are_names, "names"),
        ("task.head", are_names, "names"),
        ("encoder.init", lambda x: x != "", "random, a run or a file"),
        ("train.validate_every", lambda x: x >= 1, "at least 1"),
        ("train.patience", lambda x: x is None or x >= 1, "at least 1"),
    )
