"""Pictures stored turned, with an orientation."""

import io
import struct

import numpy as np
from PIL import Image

SHOWN = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: np.rot90,
}


def lying(pixels, orientation, form="PNG", **options):
    """Return the bytes of a picture that names an orientation."""
    exif = Image.Exif()
    exif[274] = orientation
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, exif=exif, **options)
    return out.getvalue()


def tagged_png(data, orientation):
    """Return the PNG with a chunk eXIf of the bytes that Pillow writes."""
    donor = lying(np.zeros((2, 2), np.uint8), orientation)
    at = donor.index(b"eXIf") - 4
    chunk = donor[at : at + 12 + int.from_bytes(donor[at : at + 4])]
    return data[:33] + chunk + data[33:]


def tagged_tiff(data, orientation):
    """Return the TIFF with its directory moved to the end, and one entry more."""
    order = "<" if data[:2] == b"II" else ">"
    at = struct.unpack_from(f"{order}I", data, 4)[0]
    count = struct.unpack_from(f"{order}H", data, at)[0]
    entries = [data[at + 2 + 12 * n : at + 14 + 12 * n] for n in range(count)]
    kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] != 274]
    kept.append(struct.pack(f"{order}HHIHH", 274, 3, 1, orientation, 0))
    kept.sort(key=lambda entry: struct.unpack_from(f"{order}H", entry)[0])
    start = len(data) + len(data) % 2
    body = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:4] + struct.pack(f"{order}I", start) + data[8:].ljust(start - 8, b"\0") + body
