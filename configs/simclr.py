"""SimCLR (Chen et al. 2020): only the two views of a frame attract each other; no label is looked at.

python -m awcl_jax.main --config=configs/simclr.py
"""

from ml_collections import ConfigDict

from awcl_jax.config.variants import base


def get_config(variant: str | None = None) -> ConfigDict:
    """As `configs/fine.py`, without labels: each frame once an epoch, with itself as only positive."""
    config = base(variant)
    config.name = "simclr"
    config.positives = "frame"
    config.sampler.mode = "natural"
    return config
