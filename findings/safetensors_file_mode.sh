#!/usr/bin/env bash
# safetensors 0.8.0 writes files that only their owner can read, whatever the umask.
#
# POSIX (open, O_CREAT) and Python's open() create a file with mode 0666 less the umask, and keep the mode of a file that
# exists. Input: an array, saved by save_file with umask 022 as a new file and over a file of mode 0664.
# Expected: 0644 for the new file, 0664 for the other.
# Seen: 0600 for both: the bytes go to a temporary file that is then renamed. In a shared folder, a colleague or a service
# can no longer read weights that were saved again.
# Exits with 0 while this holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

os.umask(0o022)
with open("plain", "wb"):
    pass
Path("old").touch()
Path("old").chmod(0o664)
for name in ("new", "old"):
    save_file({"a": np.zeros(2)}, name)
modes = {name: oct(Path(name).stat().st_mode & 0o777) for name in ("plain", "new", "old")}
print(modes)
assert modes == {"plain": "0o644", "new": "0o600", "old": "0o600"}, "changed: expected 0o644, 0o644, 0o664"
PYTHON
