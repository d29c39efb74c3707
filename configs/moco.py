"""MoCo v2 (He et al. 2020, Chen et al. 2020): a frame's own second view against a queue of earlier frames.

python -m awcl_jax.main --config=configs/moco.py

With anatomy as positives the queue serves AWCL: `--config=configs/fine.py --config.queue.size=512`.
"""

from ml_collections import ConfigDict

from awcl_jax.config.variants import base


def get_config(variant: str | None = None) -> ConfigDict:
    """Return `configs/simclr.py` with a momentum encoder and a queue about half as long as the phantom's epoch."""
    config = base(variant)
    config.name = "moco"
    config.positives = "frame"
    config.sampler.mode = "natural"
    config.queue.size = 512
    return config
