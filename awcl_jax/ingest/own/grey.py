"""Grey values of 8 bits out of deeper ones."""

import numpy as np
from jaxtyping import Shaped, UInt8


def apply_window(values: Shaped[np.ndarray, "h w"], window: tuple[float, float]) -> UInt8[np.ndarray, "h w"]:
    """Grey values of 8 bits: 255 (v - low) / (high - low), rounded, and cut off at 0 and 255."""
    low, high = window
    return np.rint(np.clip(255 * (values.astype(np.float64) - low) / (high - low), 0, 255)).astype(np.uint8)
