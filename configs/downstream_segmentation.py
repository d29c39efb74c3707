"""Task II: segment a frame, by a U-Net decoder trained together with the encoder; Task III: on other data.

python -m awcl_jax.main --config=configs/downstream_segmentation.py --config.encoder.init=RUN
python -m awcl_jax.main --config=configs/downstream_segmentation.py:hc18 --config.data.path=DIR
python -m awcl_jax.main --config=configs/downstream_segmentation.py --config.encoder.init=RUN --config.encoder.frozen
"""

from ml_collections import ConfigDict

from awcl_jax.config.downstream_variants import segmentation


def get_config(variant: str | None = None) -> ConfigDict:
    """Head, abdomen and femur of the phantom; `variant` as in `awcl_jax.config.downstream_variants.segmentation`."""
    return segmentation(variant)
