"""Downstream tasks: train on an encoder, and test the result."""

import lazy_loader

# Imported when first asked for, so that --help does not wait for JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"runner": ["run"]})
