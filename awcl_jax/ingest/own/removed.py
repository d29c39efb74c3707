"""Small pictures of what was removed from frames, in which writing is visible but unreadable."""

import cv2
import numpy as np
from jaxtyping import Float32, Shaped, UInt8

SIZE = 160
_BLOCKS = 32  # along the longer edge; where something was removed, each has one brightness
_PART = 0.02  # of a block; it is red if more than this was removed
_DARKEST, _GAIN = 70, 2


def show_removed(frame: UInt8[np.ndarray, "h w"], kept: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "160 160 3"]:
    """Return a small RGB picture of a frame: kept parts in grey, removed parts in red.

    Removed parts are drawn in coarse blocks because they may be a name. Echoes show as a broad red area, writing as a
    few blocks.

    Args:
      frame: the original.
      kept: the same with 0 where something was removed.
    """
    longer = max(frame.shape)
    small, coarse = (
        tuple(max(1, round(edge * size / longer)) for edge in reversed(frame.shape)) for size in (SIZE, _BLOCKS)
    )
    grey = cv2.resize(kept, small, interpolation=cv2.INTER_AREA).reshape(small[::-1])
    changed = frame != kept
    red, share = (_in_blocks(of, coarse, small) for of in (np.where(changed, frame, 0), changed))
    red = np.minimum(_DARKEST + _GAIN * red, 255).astype(np.uint8)
    drawn = np.stack([grey, grey, grey], axis=-1)
    drawn[..., 0] = np.where((share > _PART) & (grey == 0), red, grey)
    tile = np.full((SIZE, SIZE, 3), 255, np.uint8)
    top, left = (SIZE - small[1]) // 2, (SIZE - small[0]) // 2
    tile[top : top + small[1], left : left + small[0]] = drawn
    return tile


def _in_blocks(
    values: Shaped[np.ndarray, "h w"], coarse: tuple[int, int], small: tuple[int, int]
) -> Float32[np.ndarray, "_ _"]:
    """Return the means of blocks, at the small picture's size (both sizes are width and height)."""
    blocks = cv2.resize(values.astype(np.float32), coarse, interpolation=cv2.INTER_AREA)
    return cv2.resize(blocks, small, interpolation=cv2.INTER_NEAREST)
