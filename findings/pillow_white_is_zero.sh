#!/usr/bin/env bash
# Pillow 13.0.0 shows a 16-bit TIFF whose white is zero as a negative.
#
# TIFF 6.0 (p. 37): with PhotometricInterpretation 0, "WhiteIsZero", 0 is imaged as white. Input: such a grey ramp, with 8
# and with 16 bits, little- and big-endian, as baseline TIFF of one strip.
# Expected: black to white in both; or an error.
# Seen: 8 bits come inverted, as they should; 16 bits come as stored, white to black, without a warning. The
# big-endian file of 16 bits is not recognised as an image.
# Exits with 0 while this holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct

from PIL import Image, UnidentifiedImageError


def tiff(values, bits, order):
    entries = [(256, 4, len(values)), (257, 4, 1), (258, 3, bits), (259, 3, 1), (262, 3, 0), (273, 4, 122), (277, 3, 1)]
    entries += [(278, 4, 1), (279, 4, len(values) * bits // 8)]
    body = struct.pack(order + "H", len(entries))
    for tag, kind, value in entries:
        packed = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
        body += struct.pack(order + "HHI", tag, kind, 1) + packed
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    pixels = struct.pack(f"{order}{len(values)}{'B' if bits == 8 else 'H'}", *values)
    return io.BytesIO(start + body + bytes(4) + pixels)


def read(values, bits, order):
    try:
        return list(Image.open(tiff(values, bits, order)).get_flattened_data())
    except UnidentifiedImageError:
        return "not an image"


eight = read([255, 200, 100, 0], 8, "<")
sixteen = read([65535, 50000, 20000, 0], 16, "<")
big = read([65535, 50000, 20000, 0], 16, ">")
print(f"8 bits {eight}, 16 bits {sixteen}, big-endian {big}")
assert eight == [0, 55, 155, 255], "8 bits are shown as TIFF says"
assert sixteen == [65535, 50000, 20000, 0], "changed: expected [0, 15535, 45535, 65535]"
assert big == "not an image", "changed"
PYTHON
