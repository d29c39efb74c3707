#!/usr/bin/env bash
# wandb 0.31.0 makes a link in the folder of a run even with Settings(symlink=False).
#
# Its documentation of `symlink`: "Whether to use symlinks (True by default except on Windows)." Input: an offline run with
# symlink=False that logs one number.
# Expected: only regular files and folders.
# Seen: `wandb/latest-run` and the links to the newest logs are left out, but `logs/debug-core.log` of the run is a link
# into the user's cache, so that an archive or a copy of the folder has a link that leads nowhere.
# Exits with 0 while this holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet wandb==0.31.0
cd "$folder"
WANDB_MODE=offline WANDB_SILENT=true XDG_CACHE_HOME="$folder/cache" "$folder/venv/bin/python" - <<'PYTHON'
import os
from pathlib import Path

import wandb

with wandb.init(project="p", settings=wandb.Settings(symlink=False)) as run:
    run.log({"loss": 1.0})
links = {file.name: os.readlink(file) for file in Path("wandb").rglob("*") if file.is_symlink()}
print(links)
assert list(links) == ["debug-core.log"], "changed: expected no link"
assert not Path(links["debug-core.log"]).resolve().is_relative_to(Path("wandb").resolve())
PYTHON
