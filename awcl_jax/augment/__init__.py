"""Augmentation on the devices: each view is a function of (seed, step, row)."""
