#!/usr/bin/env bash
# pydicom 3.0.2 with Pillow 13.0.0 (numpy 2.4.6): a JPEG with an Adobe marker is converted from YCbCr twice.
#
# Input: JPEG baseline of four grey bars 20, 90, 160, 230, its components YCbCr, and Adobe's marker (APP14) says so with
#   transform 1; PhotometricInterpretation is YBR_FULL_422, as it should be. Made below by Pillow; Pillow decodes the
#   bare stream to the four greys.
# Expected: pixel_array() returns RGB of 20, 90, 160, 230.
# Seen: pydicom's Pillow plugin lets libjpeg convert such a stream to RGB, and pydicom converts the result once more, by
#   the tag: the greys get colours, and errors of up to 114 levels.
# Exits with 0 while this holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pydicom==3.0.2 pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.uid import JPEGBaseline8Bit

bars = np.repeat(np.array([20, 90, 160, 230], np.uint8), 16)[None].repeat(64, 0)
file = io.BytesIO()
Image.fromarray(np.stack([bars] * 3, -1)).save(file, "JPEG", quality=95, subsampling=0)
stream = file.getvalue()
assert stream[2:4] == b"\xff\xe0"  # JFIF, which Adobe's marker takes the place of
adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"
stream = stream[:2] + adobe + stream[4 + int.from_bytes(stream[4:6], "big") :]
bare = np.asarray(Image.open(io.BytesIO(stream)))[32, 8::16]
assert np.abs(bare.astype(int) - [[20], [90], [160], [230]]).max() <= 1

ds = pydicom.Dataset()
ds.file_meta = pydicom.dataset.FileMetaDataset()
ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
ds.Rows = ds.Columns = 64
ds.SamplesPerPixel, ds.PlanarConfiguration, ds.PhotometricInterpretation = 3, 0, "YBR_FULL_422"
ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
ds.PixelData = encapsulate([stream])
found = pixel_array(ds, decoding_plugin="pillow")[32, 8::16]
error = int(np.abs(found.astype(int) - bare).max())
print(f"Pillow alone: {bare[:, 0].tolist()}; through pydicom: {found.tolist()}; greatest error {error}")
if error < 50:
    raise SystemExit("It is converted once now.")
PYTHON
