"""Task I: classify the standard plane of a frame, by a linear layer trained together with the encoder.

python -m awcl_jax.main --config=configs/downstream_planes.py --config.encoder.init=RUN
python -m awcl_jax.main --config=configs/downstream_planes.py:fetal_planes_db --config.data.path=DIR
python -m awcl_jax.main --config=configs/downstream_planes.py --config.task.label_fraction=0.1
"""

from ml_collections import ConfigDict

from awcl_jax.config.downstream_variants import planes


def get_config(variant: str | None = None) -> ConfigDict:
    """The defaults of downstream runs; `variant` as in `awcl_jax.config.downstream_variants.planes`."""
    return planes(variant)
