#!/usr/bin/env bash
# OpenCV 5.0.0.93 changes a TIFF that it should read unchanged.
#
# cv2.IMREAD_UNCHANGED: "return the loaded image as is (with alpha channel, otherwise it gets cropped). Ignore EXIF
# orientation."
# Expected: (a) a TIFF of grey and alpha with 16 bits gives 16 bits; (b) the orientation in tag 274 is ignored, as that
# of a PNG or JPEG is.
# Seen: (a) uint8, the lower 8 bits of each pixel dropped: 4095, 2048, 1024, 512, 256 become 15, 8, 4, 2, 1, without alpha;
# (b) the picture is turned, even with IMREAD_IGNORE_ORIENTATION.
# Exits with 0 while this holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import struct

import cv2
import numpy as np


def tiff(pixels, orientation=1):
    height, width, samples = pixels.shape
    bits = 8 * pixels.itemsize
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, None), (274, orientation), (277, samples)]
    entries += [(278, height), (279, pixels.nbytes)] + ([(338, 2)] if samples == 2 else [])
    start = 8 + 2 + 12 * len(entries) + 4
    body = struct.pack("<H", len(entries))
    for tag, value in entries:
        if tag == 258:
            body += struct.pack("<HHI", tag, 3, samples) + struct.pack("<HH", bits, bits if samples == 2 else 0)
        else:
            body += struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, start if tag == 273 else value)
    return b"II*\0" + struct.pack("<I", 8) + body + bytes(4) + pixels.tobytes()


def read(data, flags=cv2.IMREAD_UNCHANGED):
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


deep = np.array([[[4095, 65535], [2048, 65535], [1024, 65535], [512, 65535], [256, 65535]]], np.uint16)
grey = read(tiff(deep[..., :1]))
both = read(tiff(deep))
print(f"grey {grey.dtype} {grey.ravel().tolist()}, grey and alpha {both.dtype} {both.ravel().tolist()}")
assert grey.ravel().tolist() == [4095, 2048, 1024, 512, 256], "grey alone is unchanged"
assert both.dtype == np.uint8 and both.ravel().tolist() == [15, 8, 4, 2, 1], "changed: expected uint16"
lying = tiff(np.zeros((3, 5, 1), np.uint8), orientation=6)
shapes = {read(lying).shape, read(lying, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION).shape}
print(f"stored (3, 5), orientation 6: {shapes}")
assert shapes == {(5, 3)}, "changed: expected (3, 5)"
PYTHON
