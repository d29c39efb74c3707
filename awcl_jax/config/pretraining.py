"""The default configuration, and everything that can be wrong with one.

Files in `configs/` change a few fields of `default_config()`; any field can be set on the command line
(`--config.train.steps=500`). `validate` looks at the whole before anything is read or compiled.
"""

import itertools
from collections.abc import Iterator

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from awcl_jax.augment.options import Augmentation
from awcl_jax.config.checks import are_names, broken_rules, common_problems, unknown_names
from awcl_jax.config.fields import augmentation_fields, refuse, wrong_types
from awcl_jax.data import anatomy, sampler, selection
from awcl_jax.losses import awcl as losses
from awcl_jax.losses import ring


def default_config() -> ConfigDict:
    """Pretrain AWCL with fine anatomy on the phantom: minutes on a laptop's CPU."""
    config = ConfigDict()
    config.name = "fine"  # name of the run, in its folder's name
    config.seed = 0  # of every random draw of the run

    config.positives = "anatomy"  # whom to pull together: anatomy (AWCL), scan (patient metadata), frame (SimCLR)
    config.granularity = "fine"  # of the anatomy: fine, coarse, or both as a weighted sum of the two losses
    config.anatomy_ratio = 1.0  # share of the labelled frames whose label pretraining may use

    config.data = ConfigDict()
    config.data.dataset = "phantom"  # phantom, or a name that `awcl_jax.ingest` knows
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
    config.sampler.scans_per_anatomy = 4  # frames of each anatomy in a balanced batch, of distinct scans
    config.sampler.unlabelled_share = 0.25  # share of frames without a label in a balanced batch
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
    config.model.embedding = 128  # length of the vectors that the loss compares

    config.loss = ConfigDict()
    config.loss.temperature = 0.1  # divides the similarities; a lower one stresses the nearest negatives
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
    config.optim.learning_rate = 1e-3  # highest value, reached after the warm-up
    config.optim.schedule = "cosine"  # cosine, constant
    config.optim.warmup_steps = 20  # steps in which the learning rate rises from 0
    config.optim.weight_decay = 1e-4  # factor; see decay_all
    config.optim.decay_all = False  # decay biases and normalisation, too
    config.optim.clip_norm = placeholder(float)  # larger gradients are scaled down to this norm; off by default

    config.train = ConfigDict()
    config.train.steps = 1000  # steps of the whole training
    config.train.log_every = 10  # steps between two lines of metrics
    config.train.eval_every = 250  # steps between two evaluations on validation patients
    config.train.checkpoint_every = 250  # steps between two checkpoints, which is what a killed run can lose
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
