#!/usr/bin/env bash
# pydicom 3.0.2 (numpy 2.4.6): iter_pixels() fails at the second frame of uncompressed YBR_FULL_422.
#
# Input: two frames of 4 x 4 pixels, black and white, two samples per pixel (PS3.3 C.7.6.3.1.2), valid and made below.
# Expected: iter_pixels() returns the same frames as pixel_array().
# Seen: after the first frame the decoder treats the object as YBR_FULL, with three samples per pixel, and raises ValueError
#   ("insufficient pixel data", or "cannot reshape" when it reads from a file).
# Exits with 0 while this holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pydicom==3.0.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io

import pydicom
from pydicom.pixels import iter_pixels, pixel_array
from pydicom.uid import ExplicitVRLittleEndian

ds = pydicom.Dataset()
ds.file_meta = pydicom.dataset.FileMetaDataset()
ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.3"
ds.Rows = ds.Columns = 4
ds.SamplesPerPixel, ds.PlanarConfiguration, ds.PhotometricInterpretation = 3, 0, "YBR_FULL_422"
ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
ds.NumberOfFrames = 2
ds.PixelData = bytes([0, 0, 128, 128]) * 8 + bytes([255, 255, 128, 128]) * 8
ds["PixelData"].VR = "OB"
file = io.BytesIO()
ds.save_as(file, enforce_file_format=True)

assert pixel_array(ds)[:, 0, 0].tolist() == [[0, 0, 0], [255, 255, 255]]
for name, source in (("a dataset", ds), ("a file", io.BytesIO(file.getvalue()))):
    frames = iter_pixels(source)
    assert next(frames)[0, 0].tolist() == [0, 0, 0]
    try:
        second = next(frames)
    except ValueError as error:
        print(f"{name}: the second frame raises {error}")
    else:
        raise SystemExit(f"{name}: the second frame is read now, {second[0, 0]}")
PYTHON
