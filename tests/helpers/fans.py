"""Datasets whose frames have fans."""

import json
import shutil
from pathlib import Path

from awcl_jax.data.beams import FANS_OF_FRAMES
from awcl_jax.data.fan import Fan
from awcl_jax.data.scans import ScanIndex


def with_fans(dataset: Path, folder: Path) -> Path:
    """Copy a dataset into a folder, with a fan for the frames of every other scan."""
    copy = Path(shutil.copytree(dataset, folder / dataset.parent.name / dataset.name))
    index = ScanIndex.from_dataset(copy)
    counts = {name: int((index.scans == scan).sum()) for scan, name in enumerate(index.scan_names)}
    fan = Fan(48.0, -20.0, -35.0, 35.0, None, None)
    runs = {scan: [[count, fan]] for scan, count in list(counts.items())[::2]}
    (copy / "metadata.json").write_text(json.dumps({FANS_OF_FRAMES: runs}))
    return copy
