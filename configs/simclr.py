"""SimCLR (Chen et al. 2020): only the two views of a frame attract each other; labels are not used.

python -m awcl_jax.main --config=configs/simclr.py
"""

from ml_collections import ConfigDict

from awcl_jax.config.variants import base


def get_config(variant: str | None = None) -> ConfigDict:
    """Return `configs/fine.py` without labels: each frame once per epoch, with only itself as a positive."""
    config = base(variant)
    config.name = "simclr"
    config.positives = "frame"
    config.sampler.mode = "natural"
    return config
