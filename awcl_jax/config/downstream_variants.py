"""Changes to the configuration of downstream runs for tasks and datasets."""

from ml_collections import ConfigDict

from awcl_jax.augment.options import Augmentation
from awcl_jax.config.downstream import default_downstream_config
from awcl_jax.config.fields import augmentation_fields
from awcl_jax.config.variants import Delta, apply_variant

_SHAPES = ("fetal_head_biometry", "usgra", "camus", "echonet_dynamic", "busi", "ultrabench")


def planes(variant: str | None) -> ConfigDict:
    """Classify standard planes: of the phantom (no variant or `tiny`), of `fetal_planes_db`, or a set of `ultrabench`.

    Raises:
      InputError: no such variant.
    """
    variants = {"tiny": _tiny, "fetal_planes_db": _fetal_planes_db, "ultrabench": _ultrabench}
    return apply_variant(default_downstream_config(), variant, variants)


def segmentation(variant: str | None) -> ConfigDict:
    """Segment the phantom (no variant or `tiny`), its hearts (`heart`), `hc18` or another dataset.

    Raises:
      InputError: no such variant.
    """
    config = default_downstream_config()
    config.name = "downstream_segmentation"
    config.task.kind = "segmentation"
    config.task.head = ("head",)
    # The phantom has outlines only for frames on a plane; frames between planes look much the same.
    config.task.empty_frames = False
    config.augment = augmentation_fields(Augmentation(size=96, crop_area=(0.5, 1.0)))
    variants = {
        "tiny": _tiny_segmentation,
        "hc18": _hc18,
        "heart": _heart,
        **{name: _shapes_of(name) for name in _SHAPES},
    }
    return apply_variant(config, variant, variants)


def _tiny(config: ConfigDict) -> None:
    """Run for seconds on a phantom of a few scans, to check that everything works."""
    config.data.preset = "tiny"
    config.data.size = 48
    config.augment.size = 32
    config.model.width_factor = 0.125
    config.sampler.batch_size = 16
    config.optim.warmup_steps = 5
    config.optim.learning_rate = 5e-3
    config.train.steps = 40
    config.train.validate_every = 20


def _tiny_segmentation(config: ConfigDict) -> None:
    _tiny(config)
    config.augment.size = 48


def _real(config: ConfigDict) -> None:
    """Use real frames, as published, with a ResNet-18."""
    config.task.empty_frames = True
    config.data.size = 128
    config.augment.size = 112
    config.model.width_factor = 1.0


def _fetal_planes_db(config: ConfigDict) -> None:
    """Classify six anatomies of FETAL_PLANES_DB, as in the evaluation of pretraining."""
    _real(config)
    config.data.dataset = "fetal_planes_db"
    config.task.anatomies = (
        "abdomen",
        "femur",
        "thorax",
        "trans-thalamic",
        "trans-cerebellum",
        "trans-ventricular",
    )


def _ultrabench(config: ConfigDict) -> None:
    """Classify the frames of a set of UltraBench by its labels."""
    _real(config)
    config.data.dataset = "ultrabench"


def _hc18(config: ConfigDict) -> None:
    """Segment heads of HC18, and compare their circumference with the published one."""
    _real(config)
    config.data.dataset = "hc18"
    config.augment.size = 128


def _heart(config: ConfigDict) -> None:
    """Segment the phantom's adult hearts: another domain, without a download (Task III)."""
    config.data.preset = "heart"
    config.task.head = ()


def _shapes_of(dataset: str) -> Delta:
    """Return the change for a dataset whose structures are compared as shapes, without a head to measure."""

    def change(config: ConfigDict) -> None:
        _real(config)
        config.data.dataset = dataset
        config.augment.size = 128
        config.task.head = ()

    return change
