"""The default configuration of a downstream run, and the checks of one.

The group `task` distinguishes it from that of a pretraining run (`awcl_jax.config`), with which it shares most groups.
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
    config.task.kind = "planes"  # task: planes (anatomy of a frame) or segmentation (class of each pixel)
    config.task.label_fraction = 1.0  # share of the labelled training frames whose labels are used
    config.task.granularity = "fine"  # anatomy labels to predict: fine or coarse
    config.task.anatomies = ()  # names of the anatomies to classify; () for all
    config.task.empty_frames = True  # also use frames with an empty mask for segmentation
    config.task.head = ()  # mask names that form the head, to measure its circumference; () for none

    config.encoder = ConfigDict()
    config.encoder.init = (
        "random"  # initial weights: random, a pretraining run, a checkpoint, an export, or a file of PyTorch weights
    )
    config.encoder.frozen = False  # keep the encoder fixed and train only the head or decoder

    config.data = pretraining.data
    del config.data.unlabelled
    config.sampler = ConfigDict()
    config.sampler.batch_size = 32  # number of frames in a batch, over all devices
    config.augment = augmentation_fields(Augmentation(size=64, crop_area=(0.5, 1.0)))

    config.model = pretraining.model
    del config.model.init, config.model.init_head, config.model.hidden, config.model.embedding

    config.optim = pretraining.optim
    config.optim.weight_decay = 1e-2

    config.train = ConfigDict()
    config.train.steps = 600
    config.train.log_every = 10
    config.train.validate_every = 50  # steps between two validations, each with a checkpoint; the best one is tested
    config.train.patience = placeholder(int)  # validations without improvement before training stops; unset: never
    config.train.bad_steps = 10  # consecutive steps with a non-finite loss or gradient that end the run
    config.train.mapping = "shard_map"  # how a step is distributed over devices: shard_map, pmap
    config.train.logger = "none"  # send the metrics to another service, too: none, or wandb (Weights & Biases)

    config.eval = ConfigDict()
    config.eval.batch_size = 64  # number of frames per prediction batch

    config.report = ConfigDict()
    config.report.pictures = True  # draw curves, and the confusion matrix or overlays
    return config


def validate(config: ConfigDict, *, devices: int = 1) -> None:
    """Check a whole configuration.

    Args:
      config: as from `default_downstream_config`, with changes.
      devices: number of devices that share a batch.

    Raises:
      InputError: all problems in one line.
    """
    refuse(wrong_types(config, default_downstream_config()))
    refuse(itertools.chain(common_problems(config, devices), _problems(config)))


def _problems(config: ConfigDict) -> Iterator[str]:
    yield from unknown_names(config, {"task.kind": TASKS, "task.granularity": anatomy.GRANULARITIES})
    yield from broken_rules(
        config,
        ("task.label_fraction", lambda x: 0 < x <= 1, "above 0 and at most 1"),
        ("task.anatomies", are_names, "names"),
        ("task.head", are_names, "names"),
        ("encoder.init", lambda x: x != "", "random, a run or a file"),
        ("train.validate_every", lambda x: x >= 1, "at least 1"),
        ("train.patience", lambda x: x is None or x >= 1, "at least 1"),
    )
