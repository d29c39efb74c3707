"""The default configuration of pretraining, and the checks of one.

Files in `configs/` change a few fields of `default_config()`; any field can be set on the command line
(`--config.train.steps=500`). `validate` checks all fields before anything is read or compiled.
"""

import itertools
from collections.abc import Iterator

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from awcl_jax.augment.options import Augmentation
from awcl_jax.config.checks import (
    MOST_FEATURES,
    MOST_FRAMES,
    are_names,
    broken_rules,
    common_problems,
    unknown_names,
)
from awcl_jax.config.fields import augmentation_fields, refuse, vit_fields, wrong_types
from awcl_jax.data import anatomy, sampler, selection
from awcl_jax.losses import ring
from awcl_jax.losses.awcl import LEAST_TEMPERATURE
from awcl_jax.models.vit import ViTOptions

_LARGEST_QUEUE = 2**20  # keys, 16 times those of MoCo v2


def default_config() -> ConfigDict:
    """Pretrain AWCL with fine anatomy on the phantom: minutes on a laptop's CPU."""
    config = ConfigDict()
    config.name = "fine"  # name of the run, part of its folder's name
    config.seed = 0  # seed of all random numbers of the run

    config.positives = "anatomy"  # frames that attract each other: same anatomy (AWCL), scan, or frame (SimCLR)
    config.granularity = "fine"  # anatomy labels of the loss: fine, coarse, or both (weighted sum of the two losses)
    config.anatomy_ratio = 1.0  # share of the labelled frames whose labels are used

    config.data = ConfigDict()
    config.data.dataset = "phantom"  # used if data.path is empty: phantom, or a dataset of `awcl_jax.ingest`
    config.data.path = ""  # folder of the prepared dataset; the phantom is made in the user's cache folder if empty
    config.data.preset = "default"  # version of the phantom: default, tiny, heart, heart_tiny
    config.data.size = 96  # edge in pixels of the squares that frames are resized to
    config.data.unlabelled = ()  # folders of more prepared datasets, used without their labels
    config.data.mask_overlays = False  # set pixels outside of the sector (text, marks) to 0
    config.data.skip_unreadable = False  # skip unreadable frames; all frames are read once to find them
    config.data.val_share = 0.15  # share of the training patients held out for validation if there is no `val` split
    config.data.cache_mb = 1024  # memory for decoded frames in MB; they are cached if all fit, 0 disables the cache
    config.data.disk_cache_gb = 20.0  # disk for decoded frames in GB, beside the dataset, for later runs; 0: none
    config.data.threads = 2  # number of threads that read and decode frames

    config.sampler = ConfigDict()
    config.sampler.mode = "balanced"  # batches: balanced (anatomies x scans) or natural (each frame once an epoch)
    config.sampler.batch_size = 32  # number of frames in a batch, over all devices; each has two views
    config.sampler.anatomies = placeholder(int)  # number of anatomies in a balanced batch; unset: as many as fit
    config.sampler.scans_per_anatomy = 4  # number of frames, from distinct scans, per anatomy in a balanced batch
    config.sampler.unlabelled_share = 0.25  # share of unlabelled frames in a balanced batch; more if scans are few
    config.sampler.pairs = "frame"  # second view: of the same frame (frame) or of another scan (cross_scan)

    config.augment = augmentation_fields(Augmentation(size=64))

    config.model = ConfigDict()
    config.model.arch = (
        "resnet18"  # encoder: resnet18, resnet34, resnet50, vit_tiny, vit_small, vit_base, vit_large, convnext_tiny,
        # convnext_small, convnextv2_tiny
    )
    config.model.width_factor = 0.25  # factor on the width of all layers; 1 is the paper's width
    config.model.strides = "v1.5"  # strides of resnet50: v1.5 as torchvision, v1 as He et al.
    config.model.dtype = "float32"  # type of the arithmetic: float32, bfloat16
    config.model.remat = False  # recompute each block for its gradient: less memory, more time
    config.model.init = "random"  # initial encoder: random, a run, a checkpoint, an export or a PyTorch file
    config.model.init_head = False  # also start from the projection head of the run in model.init
    config.model.init_input = "auto"  # input that PyTorch weights are for: auto, imagenet, half (0.5, 0.5), openai
    config.model.train_blocks = placeholder(int)  # train only so many blocks at the end (ViT, ConvNeXt); unset: all
    config.model.freeze_patches = False  # keep the kernel of a ViT's patches, or a ConvNeXt's first, as it is
    config.model.vit = vit_fields(ViTOptions())
    config.model.convnext = ConfigDict()
    config.model.convnext.drop_path = 0.0  # probability that a picture skips a ConvNeXt's last block in training
    config.model.hidden = placeholder(int)  # width of the projection's hidden layer; unset: that of the features
    config.model.embedding = 128  # length of the embeddings that the loss compares

    config.loss = ConfigDict()
    config.loss.temperature = 0.1  # divides the similarities; a lower value emphasises the nearest negatives
    config.loss.block_size = placeholder(int)  # number of anchors per block of similarities; unset: as many as fit
    config.loss.coarse_weight = 0.5  # weight of the coarse loss if granularity is both
    config.loss.exchange = "gather"  # how devices share embeddings: gather, or ring (less memory)

    config.queue = ConfigDict()
    config.queue.size = 0  # number of keys in the queue of a momentum encoder (MoCo v2); 0 for no queue
    config.queue.momentum = 0.99  # share of its parameters that the momentum encoder keeps at each step

    config.optim = ConfigDict()
    config.optim.name = "adamw"  # optimiser: adam, adamw, lars, sgd
    config.optim.learning_rate = 1e-3  # highest learning rate, reached after the warm-up
    config.optim.schedule = "cosine"  # learning rate after the warm-up: cosine, constant
    config.optim.warmup_steps = 20  # number of steps in which the learning rate rises from 0
    config.optim.weight_decay = 1e-4  # factor of the weight decay; see decay_all
    config.optim.decay_all = False  # also decay biases and normalisation parameters
    config.optim.layer_decay = 1.0  # factor on the learning rate from each layer of a ViT or ConvNeXt to the one before
    config.optim.clip_norm = placeholder(float)  # scale larger gradients down to this norm; unset: off

    config.train = ConfigDict()
    config.train.steps = 1000  # total number of training steps
    config.train.log_every = 10  # number of steps between two lines of metrics
    config.train.eval_every = 250  # number of steps between two evaluations on validation patients
    config.train.checkpoint_every = 250  # number of steps between two checkpoints; a killed run loses at most these
    config.train.bad_steps = 10  # consecutive steps with a non-finite loss or gradient that end the run
    config.train.encode_chunks = 1  # number of parts to encode a batch in, to save memory
    config.train.mapping = "shard_map"  # how a step is distributed over devices: shard_map, pmap
    config.train.logger = "none"  # send the metrics to another service, too: none, or wandb (Weights & Biases)

    config.eval = ConfigDict()
    config.eval.granularity = "fine"  # anatomy labels of the evaluation: fine or coarse, independent of pretraining
    config.eval.anatomies = ()  # names of the anatomies to evaluate; () for all
    config.eval.neighbours = 20  # number of neighbours that vote in kNN
    config.eval.batch_size = 64  # number of frames encoded at a time

    config.report = ConfigDict()
    config.report.pictures = True  # draw curves, montages and the map of embeddings; the page is always written
    config.report.map_frames = 600  # number of test frames in the map of embeddings; the page adds as many other frames
    return config


def validate(config: ConfigDict, *, devices: int = 1) -> None:
    """Check a whole configuration.

    Args:
      config: as from `default_config`, with changes.
      devices: number of devices that share a batch.

    Raises:
      InputError: all problems in one line.
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
        ("model.hidden", lambda x: x is None or x <= MOST_FEATURES, f"at most {MOST_FEATURES:,}"),
        ("model.embedding", lambda x: x >= 2, "at least 2"),
        ("model.embedding", lambda x: x <= MOST_FEATURES, f"at most {MOST_FEATURES:,}"),
        ("loss.temperature", lambda x: x >= LEAST_TEMPERATURE, f"at least {LEAST_TEMPERATURE:g}"),
        ("loss.block_size", lambda x: x is None or x >= 1, "at least 1"),
        ("loss.block_size", lambda x: x is None or x <= MOST_FRAMES, f"at most {MOST_FRAMES:,}"),
        ("loss.coarse_weight", lambda x: 0 <= x <= 1, "a share from 0 to 1"),
        ("data.unlabelled", are_names, "folders"),
        ("eval.anatomies", are_names, "names"),
        ("queue.size", lambda x: x >= 0, "0 or more"),
        ("queue.size", lambda x: x <= _LARGEST_QUEUE, f"at most {_LARGEST_QUEUE:,} keys"),
        ("queue.momentum", lambda x: 0 <= x < 1, "from 0 to below 1"),
        ("train.encode_chunks", lambda x: x >= 1, "at least 1"),
        ("eval.neighbours", lambda x: x >= 1, "at least 1"),
        ("train.eval_every", lambda x: x >= 1, "at least 1"),
        ("train.checkpoint_every", lambda x: x >= 1, "at least 1"),
    )
    if config.sampler.batch_size // devices % max(config.train.encode_chunks, 1):
        yield (
            f"config.train.encode_chunks must divide the {config.sampler.batch_size // devices} frames per device of "
            f"config.sampler.batch_size={config.sampler.batch_size}; got {config.train.encode_chunks}"
        )
    if 0 < config.queue.size < config.sampler.batch_size:
        yield (
            "config.queue.size must be 0 or at least config.sampler.batch_size="
            f"{config.sampler.batch_size}, because a queue has whole batches; got {config.queue.size}"
        )
    if config.queue.size and config.loss.exchange == "ring":
        yield "config.loss.exchange='ring' has no queue: set config.queue.size=0 or config.loss.exchange='gather'"
    if config.positives == "frame" and (config.sampler.mode, config.sampler.pairs) != ("natural", "frame"):
        yield (
            "config.positives='frame' uses no labels: set config.sampler.mode='natural' and "
            f"config.sampler.pairs='frame'; got {config.sampler.mode!r} and {config.sampler.pairs!r}"
        )
    if config.positives == "scan" and config.sampler.pairs == "cross_scan":
        yield "config.positives='scan' needs pairs of one scan: set config.sampler.pairs='frame'; got 'cross_scan'"
