"""Display of a picture as its file states: turned, mirrored, its pixels stretched to squares.

A file can store a picture lying or mirrored and name the turn that puts it upright: EXIF's tag Orientation in JPEG, PNG
(eXIf), TIFF (tag 274) and WebP, the display matrix of a video. All of them are brought to EXIF's numbers here:

    1 as stored                 5 mirrored about the main diagonal
    2 mirrored left to right    6 a quarter turn clockwise
    3 half a turn               7 mirrored about the other diagonal
    4 mirrored top to bottom    8 a quarter turn counterclockwise

This is the only place that turns pictures. Masks are turned by the metadata of their files, so that they match the
picture as displayed.
"""

from collections.abc import Sequence
from fractions import Fraction

import cv2
import numpy as np
from jaxtyping import Shaped
from PIL import ExifTags, Image

AS_STORED = 1

_TRANSPOSED = (5, 6, 7, 8)
_TURNS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
"""Signs of (a, b, c, d) with x' = a x + c y, y' = b x + d y -> EXIF's number."""
_SLANT = 0.02  # of a display matrix, about a degree: what rounding leaves of a quarter turn


def orientation_of(image: Image.Image) -> int:
    """Return EXIF's orientation of a loaded picture, 1 to 8; 1 if its file names none or a broken one.

    XMP counts where EXIF is missing, as in `PIL.ImageOps.exif_transpose`. Pillow turns a TIFF itself while it loads it,
    and then no longer names an orientation.
    """
    if not {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"} & image.info.keys():
        return AS_STORED  # the common case, without a parser
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, AS_STORED)
    except Exception:  # Pillow's parser raises many kinds; the pixels are good without it
        return AS_STORED
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else AS_STORED


def orientation_of_matrix(matrix: Sequence[int]) -> int | None:
    """Return the orientation that a video's display matrix stands for; None if it is not a quarter turn.

    Args:
      matrix: nine numbers (a, b, u, c, d, v, x, y, w) of FFmpeg's AV_FRAME_DATA_DISPLAYMATRIX, which maps a point of
        the stored frame (x to the right, y down) to x' = a x + c y, y' = b x + d y.
    """
    a, b, _, c, d = matrix[:5]
    largest = max(abs(a), abs(b), abs(c), abs(d))
    if not largest:
        return AS_STORED  # an empty matrix

    def sign(value: int) -> int:
        return 0 if abs(value) <= _SLANT * largest else 1 if value > 0 else -1

    return _TURNS.get((sign(a), sign(b), sign(c), sign(d)))


def upright(pixels: Shaped[np.ndarray, "h w *c"], orientation: int) -> Shaped[np.ndarray, "h2 w2 *c"]:
    """Return stored pixels as they are displayed.

    Args:
      pixels: as they are stored.
      orientation: EXIF's number, 1 to 8.

    Returns:
      The same pixels in another order; [w, h] where the orientation is 5 to 8. Its memory is contiguous.
    """
    assert 1 <= orientation <= 8, orientation
    if orientation == AS_STORED:
        return pixels
    if orientation in _TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    # After the transposition, what remains is to mirror rows, columns or both.
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def square_width(width: int, aspect: Fraction | None) -> int:
    """Return the width in square pixels of a frame whose pixels are `aspect` times as wide as high.

    The height stays. An aspect that is unknown (None, 0) is 1.
    """
    return max(1, round(width * aspect)) if aspect else width


def with_square_pixels(pixels: Shaped[np.ndarray, "h w"], aspect: Fraction | None) -> Shaped[np.ndarray, "h w2"]:
    """Return a frame resized to square pixels, see `square_width`; averaging where it shrinks."""
    height, width = pixels.shape
    wanted = square_width(width, aspect)
    if wanted == width:
        return pixels
    how = cv2.INTER_AREA if wanted < width else cv2.INTER_LINEAR
    return cv2.resize(pixels, (wanted, height), interpolation=how)
