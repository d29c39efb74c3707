#!/usr/bin/env bash
# OpenCV's INTER_NEAREST_EXACT takes other pixels in 4.14.0.94 than in 5.0.0.93, and in 4.14 others than Pillow.
#
# cv::INTER_NEAREST_EXACT: "Bit exact nearest neighbor interpolation. This will produce same results as the nearest
# neighbor method in PIL, scikit-image or Matlab."
# Expected: a mask resized by both versions, and by Pillow, is the same.
# Seen: 5.0 is Pillow's. 4.14 takes another row or column wherever a pixel's centre is on the line between two, as in each
# fifth of 256 -> 640: of ten pixels, enlarged to 25, it shows 0 0 0 1 1 2 2 2 3 3 ... instead of 0 0 1 1 1 2 2 2 3 3 ...
# Of a disk in 256 x 256 pixels, resized to 80 x 80, 8 pixels of the rim differ between the two.
# Exits with 0 while this holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/resize.py" <<'PYTHON'
import cv2
import numpy as np
from PIL import Image


def resize(picture, size):
    return cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST_EXACT)


ten = np.arange(10, dtype=np.uint8)[None]
columns = resize(ten, (25, 1))[0].tolist()
pillow = np.asarray(Image.fromarray(ten).resize((25, 1), Image.Resampling.NEAREST))[0].tolist()
y, x = np.mgrid[:256, :256] - 127.5
disk = (y**2 + x**2 < 90**2).astype(np.uint8)
others = int((resize(disk, (80, 80)) != np.asarray(Image.fromarray(disk).resize((80, 80), Image.Resampling.NEAREST))).sum())
print(f"OpenCV {cv2.__version__}: {columns}, Pillow's: {columns == pillow}; {others} pixels of a disk differ from Pillow's")
older = cv2.__version__.startswith("4.")
assert (columns == pillow) == (not older), "changed"
assert (others > 0) == older, "changed"
PYTHON
for version in 4.14.0.94 5.0.0.93; do
  python3 -m venv --clear "$folder/venv"
  "$folder/venv/bin/pip" install --quiet "opencv-python-headless==$version" numpy==2.4.6 pillow==12.0.0
  "$folder/venv/bin/python" "$folder/resize.py"
done
