"""AWCL with fine anatomy: frames of one standard plane attract each other, whatever their scan.

python -m awcl_jax.main --config=configs/fine.py
python -m awcl_jax.main --config=configs/fine.py:fetal_planes_db --config.data.path=DIR
python -m awcl_jax.main --config=configs/fine.py:vit --config.data.path=DIR --config.model.init=WEIGHTS
"""

from ml_collections import ConfigDict

from awcl_jax.config.variants import base


def get_config(variant: str | None = None) -> ConfigDict:
    """The defaults are AWCL fine; `variant` as in `awcl_jax.config.variants.base`."""
    return base(variant)
