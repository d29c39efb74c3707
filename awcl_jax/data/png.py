"""Pictures and masks in a publisher's files: read, checked, and returned as 8-bit grey."""

import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

from awcl_jax.data.images import BadImageError, check_image, read_classes
from awcl_jax.data.upright import AS_STORED, upright
from awcl_jax.runtime.errors import InputError

_PNG = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3  # a colour type
_TURNING = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # chunks of PNG, or texts in them


def read_png(path: Path) -> bytes:
    """Read an image and return it as an 8-bit grey PNG; such a PNG is returned byte for byte.

    Colour becomes grey: publishers store some grey frames with three equal channels. What is stored lying is turned
    (see `awcl_jax.data.upright`).

    Raises:
      InputError: the image is cut short or broken, does not have 8 bits, or is empty (a single value).
    """
    data = _read(path)
    orientation = _check(data, path)
    grey = _decode(data, orientation, path)
    require_content(grey, str(path))
    # Bytes 24 and 25 are the PNG header's bit depth and colour type; type 0 is grey.
    if data.startswith(_PNG) and data[24:26] == b"\x08\x00" and orientation == AS_STORED:
        return data
    return encode_png(grey)


def read_grey(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Read the grey values of an image or a mask, which may be empty.

    Raises:
      InputError: the file is cut short or broken, or does not have 8 bits.
    """
    data = _read(path)
    return _decode(data, _check(data, path), path)


def read_mask(path: Path, names: Sequence[str], *, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Read a mask whose grey values are classes, or the indices of its palette.

    If the greys of a palette are classes, these count: programs that shrink files write grey in this way.

    Args:
      path: of the mask.
      names: what the values 0, 1, ... mean.
      size: height and width of its image.

    Raises:
      InputError: as `read_grey`, or the mask has another size, or other values.
    """
    data = _read(path)
    mask = _decode(data, _check(data, path), path)
    if data.startswith(_PNG) and data[25] == _PALETTE and mask.max() >= len(names):
        # Its colours are for looking at.
        indices = read_classes(io.BytesIO(data))[0]
        assert indices is not None
        mask = indices
    check_mask(mask, names, size=size, path=path)
    return mask


def read_lesion(path: Path, *, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Read a mask of one structure, whatever value its publisher wrote for it, as 0 and 1; it may be empty.

    Args:
      path: of the mask.
      size: height and width of its image.

    Raises:
      InputError: as `read_grey`, or the mask has another size, or more values than 0 and one other.
    """
    mask = read_grey(path)
    require_size(mask, size, path)
    if len(values := np.unique(mask)) > 2 or values[0] != 0:
        raise InputError(
            f"The mask {path} must have the value 0 and one other; got {len(values)} values from {values[0]}."
        )
    return (mask != 0).astype(np.uint8)


def check_mask(mask: UInt8[np.ndarray, "h w"], names: Sequence[str], *, size: tuple[int, int], path: Path) -> None:
    """Refuse a mask whose size differs from its image's, or that has unknown values.

    Raises:
      InputError: it is one.
    """
    require_size(mask, size, path)
    if unknown := np.unique(mask[mask >= len(names)]).tolist():
        meant = ", ".join(f"{value} {name}" for value, name in enumerate(names))
        raise InputError(f"The mask {path} has the unknown values {', '.join(map(str, unknown))}; known are {meant}.")


def require_content(image: UInt8[np.ndarray, "h w"], place: str) -> None:
    """Refuse a picture of a single value.

    Raises:
      InputError: it is one.
    """
    if image.min() == image.max():
        raise InputError(f"{place} is empty: every pixel is {image.flat[0]}.")


def require_size(mask: UInt8[np.ndarray, "h w"], size: tuple[int, int], path: Path) -> None:
    """Refuse a mask whose size differs from its image's.

    Raises:
      InputError: it is of another size.
    """
    if mask.shape != size:
        raise InputError(
            f"The mask {path} must have as many pixels as its image, {size[1]} x {size[0]}; got {mask.shape[1]} x "
            f"{mask.shape[0]}."
        )


def encode_png(image: UInt8[np.ndarray, "h w"]) -> bytes:
    """Encode an image as an 8-bit grey PNG."""
    return cv2.imencode(".png", image)[1].tobytes()


def png_size(data: bytes) -> tuple[int, int]:
    """Return the height and width of a PNG, from its header."""
    return int.from_bytes(data[20:24]), int.from_bytes(data[16:20])


def png_bits(data: bytes) -> int:
    """Return the bits of a channel of a PNG, from its header; 0 if it is not a PNG."""
    return data[24] if data.startswith(_PNG) else 0


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    if not data:
        raise InputError(f"{path} is broken: it has no bytes.")
    return data


def _check(data: bytes, path: Path) -> int:
    """Check that an image is intact, and return its orientation."""
    if fault := find_png_fault(data):
        # cv2 would silently fill missing parts with black.
        raise InputError(f"{path} is broken: {fault}.")
    if data.startswith(_PNG) and not any(name in data for name in _TURNING):
        return AS_STORED
    try:
        return check_image(io.BytesIO(data))
    except BadImageError as error:
        raise InputError(f"{path} is broken: {error}.") from error


def _decode(data: bytes, orientation: int, path: Path) -> UInt8[np.ndarray, "h w"]:
    """Return the grey values of an intact image."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or not image.size:
        raise InputError(f"{path} is broken: it cannot be decoded as an image.")
    if image.dtype != np.uint8:
        raise InputError(f"{path} has {8 * image.dtype.itemsize} bits a pixel; frames must have 8.")
    return upright(to_grey(image), orientation)


def is_png(data: bytes) -> bool:
    """Return whether these bytes begin as a PNG does."""
    return data.startswith(_PNG)


def find_png_fault(data: bytes) -> str | None:
    """Return what is wrong with a PNG, by the checksums of its chunks; None if it is intact, or not a PNG."""
    if not data.startswith(_PNG):
        return None
    start = len(_PNG)
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4])
        if zlib.crc32(data[start + 4 : end]) != int.from_bytes(data[end : end + 4]):
            return "it is cut short" if end + 4 > len(data) else "its checksum is wrong"
        if data[start + 4 : start + 8] == b"IEND":
            return None
        start = end + 4
    return "it is cut short"


def to_grey(image: Shaped[np.ndarray, "h w"] | Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "h w"]:
    """Return the grey values of a picture as cv2 reads it: three equal channels exactly, colours by their luminance."""
    if image.ndim == 2:
        return image
    colour = image[..., :3]
    if (colour == colour[..., :1]).all():
        return np.ascontiguousarray(colour[..., 0])
    return cv2.cvtColor(np.ascontiguousarray(colour), cv2.COLOR_BGR2GRAY)
