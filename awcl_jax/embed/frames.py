"""Frames of a program, turned to grey: one or several, of one size or of many, grey or in colour.

Nothing is guessed that could be wrong without notice. Floats are from 0 to 1, because a dark frame from 0 to 255 cannot
be told from a bright one from 0 to 1. Colours need their order, because RGB and BGR give other grey values.
"""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8
from numpy.typing import ArrayLike

from awcl_jax.runtime.errors import InputError

Frames = ArrayLike | Sequence[ArrayLike]

_CHANNELS = (1, 3)
_TO_GREY = {"rgb": cv2.COLOR_RGB2GRAY, "bgr": cv2.COLOR_BGR2GRAY}


def require_colours(colours: str | None) -> None:
    """Check the order of colours.

    Raises:
      InputError: it is neither `rgb`, `bgr` nor None.
    """
    if colours is not None and colours not in _TO_GREY:
        raise InputError(f"colours must be 'rgb', 'bgr' or None (grey frames); got {colours!r}.")


def as_grey(frames: Frames, *, colours: str | None = None) -> list[UInt8[np.ndarray, "h w"]]:
    """Return frames as grey values of 8 bits.

    Args:
      frames: an array [b, h, w], [b, h, w, 1] or [b, h, w, 3]; one frame, [h, w], [h, w, 1] or [h, w, 3]; or a list of
        such frames, of any sizes. uint8 from 0 to 255, or floats from 0 to 1.
      colours: order of the last axis where it has three values that differ, `rgb` or `bgr`; they become their luminance
        (ITU-R BT.601). Three equal values are grey in either order.

    Raises:
      InputError: frames have another shape, type or range, there are none, or colours have no order.
    """
    if isinstance(frames, str | bytes):
        raise InputError(
            f"Frames must be arrays of pixels; got the text {frames[:80]!r}. For files use python -m awcl_jax.embed."
        )
    arrays = list(_one_by_one(frames))
    if not arrays:
        raise InputError("Frames must be at least one; got none.")
    return [_grey(_eight_bits(frame), colours) for frame in arrays]


def _one_by_one(frames: Frames) -> Iterator[Shaped[np.ndarray, "h w *c"]]:
    """Yield frames [h, w], or [h, w, c] with 1 or 3 channels."""
    if isinstance(frames, list | tuple) or (isinstance(frames, np.ndarray) and frames.dtype == object):
        for number, frame in enumerate(frames):
            array = np.asarray(frame)
            if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] in _CHANNELS):
                raise InputError(
                    f"Each frame of a list must be [h, w], [h, w, 1] or [h, w, 3]; frame {number} has {array.shape}."
                )
            yield _with_pixels(array)
        return
    array = np.asarray(frames)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in _CHANNELS):
        yield _with_pixels(array)
    elif array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in _CHANNELS):
        yield from map(_with_pixels, array)
    else:
        raise InputError(
            f"Frames must be [b, h, w], [b, h, w, 1] or [b, h, w, 3], or one frame or a list; got {array.shape}. Move "
            "channels to the end, and drop transparency."
        )


def _with_pixels(frame: Shaped[np.ndarray, "h w *c"]) -> Shaped[np.ndarray, "h w *c"]:
    if not frame.size:
        raise InputError(f"A frame must have pixels; got the shape {frame.shape}.")
    return frame


def _eight_bits(frame: Shaped[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h w *c"]:
    if np.issubdtype(frame.dtype, np.floating):
        if not 0 <= frame.min() <= frame.max() <= 1:
            raise InputError(
                f"Frames as floats must be from 0 to 1; got {frame.min():g} to {frame.max():g}. If black is 0 and "
                "white 255, divide by 255."
            )
        return np.round(frame * 255).astype(np.uint8)
    if frame.dtype != np.uint8:
        raise InputError(f"Frames must be uint8 from 0 to 255, or floats from 0 to 1; got {frame.dtype}.")
    return frame


def _grey(frame: UInt8[np.ndarray, "h w *c"], colours: str | None) -> UInt8[np.ndarray, "h w"]:
    if frame.ndim == 2:
        return frame
    if (frame == frame[..., :1]).all():
        return frame[..., 0]
    if colours is None:
        raise InputError(
            "Frames in colour need the order of their channels: load_encoder(..., colours='rgb'), or 'bgr' as OpenCV "
            "reads them."
        )
    return cv2.cvtColor(np.ascontiguousarray(frame), _TO_GREY[colours])
