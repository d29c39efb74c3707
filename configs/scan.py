"""Patient metadata as the only label: frames of one scan attract each other.

python -m awcl_jax.main --config=configs/scan.py
"""

from ml_collections import ConfigDict

from awcl_jax.config.variants import base


def get_config(variant: str | None = None) -> ConfigDict:
    """Return `configs/fine.py` with batches of scans x distinct frames of each."""
    config = base(variant)
    config.name = "scan"
    config.positives = "scan"
    return config
