"""Features from a trained encoder."""

import lazy_loader

# Imported on first use, so that --help does not wait for JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"command": ["load_encoder"]})
