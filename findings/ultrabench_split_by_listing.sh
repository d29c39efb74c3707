#!/usr/bin/env bash
# ultrabench 1.0.1: the test set of PSFHS depends on the order in which the disk lists the files.
#
# Input: thirty frames with masks as MetaImage files in the publisher's layout, made below, twice: once written from the
#   first to the last and once from the last to the first, into a memory file system, which lists them by time.
# Expected: the same fixed seed (42) gives the same test frames, since names and contents are equal.
# Seen: glob's order goes into train_test_split unsorted; the two test sets of six frames have none in common. Scores of
#   "the benchmark's test set" from two machines are then of different frames. Sets that are split by groups of a named
#   patient or clip are not affected.
# Exits with 0 while this holds. Needs a memory file system at /dev/shm.
set -euo pipefail
folder=$(mktemp -d)
memory=$(mktemp -d -p /dev/shm)
trap 'rm -rf "$folder" "$memory"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ultrabench==1.0.1 scikit-learn==1.9.1 scikit-image==0.26.0 simpleitk==2.5.7 numpy==2.4.6
"$folder/venv/bin/python" - "$memory" <<'PYTHON'
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

FRAMES = np.random.default_rng(0).integers(2, 256, (30, 64, 64)).astype(np.uint8)


def test_frames(root, order):
    raw, out = root / "raw", root / "out"
    for part in (raw / "image_mha", raw / "label_mha", out):
        part.mkdir(parents=True)
    for number in order:
        name = f"{number:05d}.mha"
        sitk.WriteImage(sitk.GetImageFromArray(FRAMES[number]), raw / "image_mha" / name)
        sitk.WriteImage(sitk.GetImageFromArray((FRAMES[number] > 250).astype(np.uint8)), raw / "label_mha" / name)
    subprocess.run([sys.executable, "-m", "ultrabench", "psfhs", raw, out], check=True, capture_output=True)
    return {row["image"] for row in json.loads((out / "psfhs_v1.0.1" / "test.json").read_text())}


memory = Path(sys.argv[1])
forwards = test_frames(memory / "forwards", range(30))
backwards = test_frames(memory / "backwards", reversed(range(30)))
print(f"{len(forwards)} and {len(backwards)} test frames, {len(forwards & backwards)} in both")
assert len(forwards) == len(backwards) == 6
assert forwards != backwards
PYTHON
