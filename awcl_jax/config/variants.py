"""Changes to every configuration for a dataset or a publication."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from awcl_jax.augment.options import PAPER
from awcl_jax.config.fields import augmentation_fields
from awcl_jax.config.pretraining import default_config
from awcl_jax.runtime.errors import InputError

Delta = Callable[[ConfigDict], None]
"""What a variant changes in a configuration."""


def base(variant: str | None) -> ConfigDict:
    """Return the defaults with a variant's changes.

    Args:
      variant: none (the phantom), `tiny`, `fetal_planes_db`, `from_weights`, `paper`, `vit` or `convnext`.

    Raises:
      InputError: no such variant.
    """
    variants = {
        "tiny": _tiny,
        "fetal_planes_db": _fetal_planes_db,
        "from_weights": _from_weights,
        "paper": _paper,
        "vit": _vit,
        "convnext": _convnext,
    }
    return apply_variant(default_config(), variant, variants)


def apply_variant(config: ConfigDict, variant: str | None, variants: Mapping[str, Delta]) -> ConfigDict:
    """Return the configuration, changed in place by the variant of this name, if there is one.

    Raises:
      InputError: no variant has this name.
    """
    if variant and variant not in variants:
        raise InputError(f"Unknown variant {variant!r}; use one of {', '.join(variants)}.")
    if variant:
        variants[variant](config)
    return config


def _tiny(config: ConfigDict) -> None:
    """Run for seconds on a phantom of a few scans, to check that everything works."""
    config.data.preset = "tiny"
    config.data.size = 48
    config.augment.size = 32
    config.model.width_factor = 0.125
    config.model.embedding = 32
    config.sampler.batch_size = 16
    config.sampler.scans_per_anatomy = 3
    config.optim.warmup_steps = 5
    config.train.steps = 30
    config.train.eval_every = 30
    config.train.checkpoint_every = 10
    config.report.map_frames = 100


def _fetal_planes_db(config: ConfigDict) -> None:
    """Use real frames of FETAL_PLANES_DB with a ResNet-18."""
    config.data.dataset = "fetal_planes_db"
    config.data.size = 128
    config.augment.size = 112
    config.model.width_factor = 1.0
    config.eval.anatomies = (
        "abdomen",
        "femur",
        "thorax",
        "trans-thalamic",
        "trans-cerebellum",
        "trans-ventricular",
    )


def _from_weights(config: ConfigDict) -> None:
    """Continue from a ResNet-50 of ImageNet (`model.init`) on FETAL_PLANES_DB, by 600 steps at 112 pixels.

    `model.strides` must be those of the weights: v1.5 for torchvision's and timm's, v1 for those of He et al.
    """
    _fetal_planes_db(config)
    config.model.arch = "resnet50"
    config.augment.mean, config.augment.std = 0.449, 0.226  # averages of ImageNet's three channels
    config.train.steps = 600
    config.train.eval_every = 100
    config.train.checkpoint_every = 50


def _paper(config: ConfigDict) -> None:
    """Use the settings of the published AWCL code, on the phantom's frames of the same fourteen planes.

    ResNet-18 from scratch at 227 pixels, a 512-512-128 projection, batches of 32 as they come, Adam at 1e-3 with weight
    decay 1e-6 on every parameter, temperature 0.5. Not adopted: the loss's factor t/0.07, which Adam nearly ignores,
    and the choice of positives for a whole batch by its first label.
    """
    config.data.size = 256
    config.sampler.mode = "natural"
    config.augment = augmentation_fields(PAPER)
    config.model.width_factor = 1.0
    config.model.hidden = 512
    config.model.embedding = 128
    config.loss.temperature = 0.5
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "constant"
    config.optim.warmup_steps = 0
    config.optim.weight_decay = 1e-6
    config.optim.decay_all = True


def _vit(config: ConfigDict) -> None:
    """Fine-tune a vision transformer from published weights (`model.init`), a ViT-S with patches of 16 pixels.

    Learning rate, its fall with each layer, weight decay and skipped blocks are of the size of MAE's and DeiT III's for
    fine-tuning; they were not tuned on ultrasound.
    """
    config.data.size = 256
    config.augment.size = 224
    config.model.arch = "vit_small"
    config.model.width_factor = 1.0
    config.model.vit.drop_path = 0.1
    config.optim.learning_rate = 1e-4
    config.optim.layer_decay = 0.75
    config.optim.weight_decay = 0.05


def _convnext(config: ConfigDict) -> None:
    """Fine-tune a ConvNeXt from published weights (`model.init`), a ConvNeXt-T.

    Learning rate, its fall with each third block, weight decay and skipped blocks are of the size of those that its
    authors fine-tuned with; they were not tuned on ultrasound.
    """
    config.data.size = 256
    config.augment.size = 224
    config.model.arch = "convnext_tiny"
    config.model.width_factor = 1.0
    config.model.convnext.drop_path = 0.1
    config.optim.learning_rate = 1e-4
    config.optim.layer_decay = 0.8
    config.optim.weight_decay = 0.05
