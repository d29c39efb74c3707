#!/usr/bin/env bash
# OpenCV 5.0.0.93 rotates a video that should be mirrored.
#
# A display matrix (ISO/IEC 14496-12, 8.3.2) of (-1, 0, 0, 1) mirrors a track left to right, as selfie cameras and frame
# grabbers write it. OpenCV's VideoCapture applies the matrix by default (CAP_PROP_ORIENTATION_AUTO).
# Expected: the frames mirrored left to right, as `ffmpeg -i x.mp4` and players show them.
# Seen: rotated by half a turn, upside down; with (1, 0, 0, -1), which mirrors top to bottom, they stay as stored.
# Exits with 0 while this holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 av==18.1.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import struct

import av
import cv2
import numpy as np

ramp = np.add.outer(np.arange(64) * 2, np.arange(96)).astype(np.uint8)  # darkest at the upper left
with av.open("plain.mp4", "w") as container:
    stream = container.add_stream("libx264", rate=25)
    stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
    stream.set_display_rotation(180)
    for _ in range(5):
        container.mux(stream.encode(av.VideoFrame.from_ndarray(ramp, format="gray")))
    container.mux(stream.encode())
data = open("plain.mp4", "rb").read()
at = data.index(b"tkhd") + 44


def shown(a, d):
    matrix = struct.pack(">9i", a << 16, 0, 0, 0, d << 16, 0, 0, 0, 1 << 30)
    with open("x.mp4", "wb") as file:
        file.write(data[:at] + matrix + data[at + 36 :])
    frame = cv2.VideoCapture("x.mp4").read()[1][..., 0].astype(int)
    ways = {"stored": ramp, "left to right": ramp[:, ::-1], "top to bottom": ramp[::-1], "half a turn": ramp[::-1, ::-1]}
    return min(ways, key=lambda way: np.abs(frame - ways[way]).mean())


assert shown(1, 1) == "stored"
assert shown(-1, -1) == "half a turn"
print(f"(-1, 0, 0, 1): {shown(-1, 1)}; (1, 0, 0, -1): {shown(1, -1)}")
assert shown(-1, 1) == "half a turn", "changed: expected left to right"
assert shown(1, -1) == "stored", "changed: expected top to bottom"
PYTHON
