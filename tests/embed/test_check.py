"""What is wrong with a source or an encoder is said before JAX is imported."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]

# Each refusal in one process, because starting one takes longer than all of them.
CALLS = """
import json, sys
from awcl_jax.embed.command import embed_frames, load_encoder
from awcl_jax.runtime.errors import InputError
said = []
for encoder, source in json.loads(sys.argv[1]):
    try:
        load_encoder(encoder) if source is None else embed_frames(encoder, source, "f.npz")
    except InputError as error:
        said.append(str(error))
    else:
        said.append("")
print(json.dumps([said, sorted({"jax", "grain", "flax", "orbax", "tensorflow_datasets"} & sys.modules.keys())]))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with things of many kinds."""
    root = tmp_path_factory.mktemp("folders")
    stored = {"data": "f00d"}
    for name, config in (("run", {}), ("begun", {}), ("task", {"task": {"kind": "planes"}})):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(stored | {"config": config}))
    for name in ("run", "task"):
        (root / name / "checkpoints" / "20").mkdir(parents=True)
    (root / "export").mkdir()
    (root / "export" / "preprocessing.json").write_text("{}")
    for name in ("empty", "other", "pictures"):
        (root / name).mkdir()
    (root / "other" / "notes.txt").write_text("nothing")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / "pictures" / "a.png")
    (root / "no_path.csv").write_text("file\na.png\n")
    (root / "no_rows.csv").write_text("path\n")
    (root / "exam.dcm").write_bytes(bytes(128) + b"DICM")
    return root


CASES = [
    ("none", "pictures", "none is not a run folder: it does not exist"),
    ("no_rows.csv", "pictures", "no_rows.csv is not a run folder: it is a file"),
    ("empty", "pictures", "config.json not found"),
    ("begun", "pictures", "begun has no checkpoint (available: none)"),
    ("run/checkpoints/30", "pictures", "no checkpoint of step 30 (available: up to step 20)"),
    ("run/checkpoints/\N{SUPERSCRIPT TWO}", "pictures", "is not a run folder: it does not exist"),
    ("task", "pictures", "task is a downstream run"),
    ("export", "pictures", "neither encoder.safetensors nor encoder.jax"),
    ("none", None, "none is not a run folder"),
    ("task", None, "task is a downstream run"),
    ("run", "none", "none does not exist"),
    ("run", "empty", "neither a prepared dataset nor pictures, clips or DICOM, it is empty"),
    ("run", "other", "nor pictures, clips or DICOM (1 other files)"),
    ("run", "other/notes.txt", "The source must be a folder, DICOM, or a file that ends in .png"),
    ("run", "run", "run is an encoder, not frames"),
    ("run", "export", "export is an encoder, not frames"),
    ("run", "no_path.csv", "no column 'path'"),
    ("run", "no_rows.csv", "lists no pictures"),
    ("run", "exam.dcm", "DICOM needs a key"),
]


def test_a_refusal_does_not_wait_for_jax(folders, monkeypatch):
    monkeypatch.delenv("AWCL_ID_KEY", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    calls = [(str(folders / e), None if s is None else str(folders / s)) for e, s, _ in CASES]
    command = [sys.executable, "-c", CALLS, json.dumps(calls)]
    done = subprocess.run(command, cwd=folders, capture_output=True, text=True, check=True)
    said, imported = json.loads(done.stdout)
    for (encoder, source, expected), line in zip(CASES, said, strict=True):
        assert expected in line, (encoder, source, line)
    assert imported == []
    assert not (folders / "f.npz").exists()
