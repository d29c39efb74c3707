"""Configurations: defaults, rules, files, and what is built from them."""

import lazy_loader

# Imported on first use, so that --help does not wait for JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"fields": ["from_dict", "to_dict"], "pretraining": ["default_config", "validate"]}
)
