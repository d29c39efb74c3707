"""Anatomy-aware contrastive pretraining for ultrasound, on JAX."""

__version__ = "0.1.0"
