#!/usr/bin/env bash
# safetensors 0.8.0 writes the same arrays as different files.
#
# Metadata of two names or more is written in the random order of a hash table. The order of tensors is fixed.
# Input: an array and the metadata {"format": "pt", "a": "1"}, saved by save() 64 times.
# Expected: equal bytes, as hashes of files, caches and stores that keep equal files once rely on.
# Seen: two files with the same arrays whose headers differ.
# Exits with 0 while this holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json

import numpy as np
from safetensors.numpy import save

arrays = {"b": np.zeros(2, np.float32), "a": np.ones(3, np.float32)}
files = {save(arrays, {"format": "pt", "a": "1"}) for _ in range(64)}
assert len({save(arrays, {"format": "pt"}) for _ in range(64)}) == 1
headers = [json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")]) for file in files]
assert all(header == headers[0] for header in headers)
print(f"{len(files)} different files of the same arrays:", *(list(header["__metadata__"]) for header in headers))
assert len(files) == 2
PYTHON
