"""What an earlier version wrote is still read: `tests/stored/version_0_1_0.zip` was made by version 0.1.0.

It holds a dataset of 20 frames; a run on it of four steps, with the checkpoint of the second and the metrics of all; an
export of that run; and the features that the run's encoder gave for three frames.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from awcl_jax.config.file import read_config
from awcl_jax.data.scans import ScanIndex
from awcl_jax.embed import load_encoder
from awcl_jax.pretrain import run
from awcl_jax.train.metrics import read_metrics

STORED = Path(__file__).parent / "stored" / "version_0_1_0.zip"
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)


@pytest.fixture
def before(tmp_path):
    """The folders of the version before."""
    with zipfile.ZipFile(STORED) as stored:
        stored.extractall(tmp_path)
    return tmp_path


def assert_features(encode, before):
    expected = np.load(before / "features.npy")
    np.testing.assert_allclose(encode(FRAMES), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_a_dataset_has_the_same_fingerprint(before):
    index = ScanIndex.from_dataset(before / "dataset" / "frame_set" / "1.0.0")
    assert index.fingerprint == json.loads((before / "run" / "config.json").read_text())["data"]
    assert len(index) == 20


@pytest.mark.slow
def test_a_run_resumes_with_the_same_numbers(before):
    config = read_config(before / "run" / "config.json")
    config.data.path = str(before / "dataset" / "frame_set" / "1.0.0")
    results = run(config, before / "run")
    assert results["steps"] == 4
    expected = {line["step"]: line for line in read_metrics(before / "expected_metrics.jsonl") if "loss" in line}
    lines = {line["step"]: line for line in read_metrics(before / "run" / "metrics.jsonl") if "loss" in line}
    assert lines.keys() == expected.keys() == {1, 2, 3, 4}
    for step, line in expected.items():
        for name in ("loss", "gradient_norm", "spread", "learning_rate"):
            assert lines[step][name] == pytest.approx(line[name], rel=1e-3), (step, name)
    assert_features(load_encoder(before / "run"), before)


@pytest.mark.parametrize("kind", ["safetensors", "jax"])
def test_an_export_gives_the_same_features(before, kind):
    kept = {"safetensors": "encoder.safetensors", "jax": "encoder.jax"}[kind]
    for file in {"encoder.safetensors", "encoder.jax"} - {kept}:
        (before / "export" / file).unlink()
    assert_features(load_encoder(before / "export"), before)
