#!/usr/bin/env bash
# pydicom 3.0.2 with pylibjpeg-openjpeg 2.6.0 or Pillow 13.0.0: JPEG 2000 with subsampled colours is converted twice.
#
# Input: a JPEG 2000 codestream of 64 x 64 with components Y, Cb, Cr, the last two of half the width, all of them even:
#   Y = 50, 100, 150, 200 in bars, Cb = Cr = 128, which is grey. PhotometricInterpretation is YBR_FULL_422, which DICOM's
#   CP-2650 allows for JPEG 2000. Made below by FFmpeg (PyAV 18.1.0).
# Expected: pixel_array() returns RGB of 50, 100, 150, 200.
# Seen: OpenJPEG's wrappers convert subsampled components to RGB themselves, and pydicom converts the result once
#   more, by the tag. With raw=True, which should return Y, Cb, Cr, it returns RGB.
# Exits with 0 while this holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q \
  pydicom==3.0.2 pillow==13.0.0 numpy==2.4.6 pylibjpeg==2.1.0 pylibjpeg-openjpeg==2.6.0 av==18.1.0
"$folder/venv/bin/python" - <<'PYTHON'
from fractions import Fraction

import av
import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.uid import JPEG2000Lossless

bars = np.repeat(np.array([50, 100, 150, 200], np.uint8), 16)[None].repeat(64, 0)
frame = av.VideoFrame(64, 64, "yuv422p")
for plane, values in zip(frame.planes, (bars, np.full((64, 32), 128), np.full((64, 32), 128)), strict=True):
    padded = np.zeros((plane.height, plane.line_size), np.uint8)
    padded[:, : plane.width] = values
    plane.update(padded)
encoder = av.CodecContext.create("jpeg2000", "w")
encoder.width = encoder.height = 64
encoder.pix_fmt, encoder.time_base = "yuv422p", Fraction(1, 25)
encoder.options = {"format": "j2k", "pred": "dwt53"}
stream = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])

ds = pydicom.Dataset()
ds.file_meta = pydicom.dataset.FileMetaDataset()
ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
ds.Rows = ds.Columns = 64
ds.SamplesPerPixel, ds.PlanarConfiguration, ds.PhotometricInterpretation = 3, 0, "YBR_FULL_422"
ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
ds.PixelData = encapsulate([stream])
right = np.array([50, 100, 150, 200])[:, None]
for plugin in ("pylibjpeg", "pillow"):
    found = pixel_array(ds, decoding_plugin=plugin)[32, 8::16].astype(int)
    raw = pixel_array(ds, decoding_plugin=plugin, raw=True)[32, 8::16].astype(int)
    print(f"{plugin}: {found.tolist()}; raw {raw.tolist()}")
    if np.abs(found - right).max() < 50 or np.abs(raw - right).max() > 3:
        raise SystemExit("It is converted once now.")
PYTHON
