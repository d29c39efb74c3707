"""Preparing a dataset by its name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest.phantom import Phantom
from awcl_jax.ingest.prepare import BUILDERS, PHANTOM_PRESETS, make_builder

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]


def test_every_name_has_its_builder(tmp_path):
    for name in BUILDERS:
        # The set of a benchmark is named by its folder.
        settings = {"source": tmp_path / "pocus_v1.0.1"} if name == "ultrabench" else {}
        assert make_builder(name, data_dir=tmp_path, **settings).name == name


def test_presets_are_those_of_the_phantom():
    assert tuple(Phantom.builder_configs) == PHANTOM_PRESETS


@pytest.mark.slow
def test_two_processes_that_want_the_phantom_make_it_once(tmp_path):
    command = [sys.executable, "-c", "from awcl_jax.ingest.prepare import prepare_phantom as p; print(p('tiny'))"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    both = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    said = "".join(stdout for stdout, _ in outputs).splitlines()
    folders = {line for line in said if not line.startswith("Preparing")}
    assert len(folders) == 1
    assert len(ScanIndex.from_dataset(folders.pop())) == 352
