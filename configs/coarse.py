"""AWCL with coarse anatomy: frames of one region (heart, head, spine, ...) attract each other.

python -m awcl_jax.main --config=configs/coarse.py
"""

from ml_collections import ConfigDict

from awcl_jax.config.variants import base


def get_config(variant: str | None = None) -> ConfigDict:
    """Return `configs/fine.py` with coarse anatomy."""
    config = base(variant)
    config.name = "coarse"
    config.granularity = "coarse"
    return config
