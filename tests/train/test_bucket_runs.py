"""Whole runs whose data and folder are in a bucket."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import chex
import pyarrow.parquet as pq
import pytest

from awcl_jax.downstream import runner as downstream
from awcl_jax.embed import command as embed
from awcl_jax.embed.load import open_encoder
from awcl_jax.export import command as export
from awcl_jax.pretrain import runner as pretrain
from awcl_jax.report import command as report
from awcl_jax.runtime import bucket
from awcl_jax.runtime.errors import InputError
from configs import downstream_planes, fine
from tests.helpers.killed_runs import numbers

ROOT = Path(__file__).parents[2]
FIELDS = {"train.steps": 6, "train.eval_every": 6, "train.log_every": 1, "train.checkpoint_every": 2}
FIELDS |= {"optim.warmup_steps": 0, "model.width_factor": 0.0625, "report.map_frames": 20}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder, which also holds the user's cache."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def bucket_url(phantom, new_bucket, folder):
    """Return the address of a bucket that holds the phantom."""
    url = f"gs://{new_bucket().name}"
    bucket.send(phantom, [file.name for file in phantom.iterdir() if file.is_file()], f"{url}/phantom")
    return url


@pytest.fixture(scope="module")
def runs(phantom, bucket_url, folder):
    """A run on the bucket that was killed while it sent a checkpoint and went on; one in a folder; what both said."""
    orders = [
        {"workdir": f"{bucket_url}/runs/killed", "config": {"data.path": f"{bucket_url}/phantom"}},
        {"workdir": str(folder / "whole"), "config": {"data.path": str(phantom)}},
    ]
    faults = ([["sending", 4], None], [None])
    files = [folder / "killed.json", folder / "whole.json"]
    for order, fault, file in zip(orders, faults, files, strict=True):
        order |= {"config": FIELDS | order["config"], "compiled": str(folder / "compiled"), "faults": fault}
        file.write_text(json.dumps(order))
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.killed_runs", *map(str, files)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    statuses = [json.loads(line) for line in done.stdout.splitlines()[-2:]]
    assert statuses == [[-signal.SIGKILL, 0], [0]], done.stderr
    return orders[0]["workdir"], folder / "whole", done.stderr


def test_a_killed_run_in_a_bucket_ends_like_one_in_a_folder(runs, folder):
    home, whole, said = runs
    # Half of the checkpoint of step 4 was in the bucket.
    assert [line for line in said.splitlines() if "Resuming" in line] == ["Resuming from step 2 of 6."]
    assert f"metrics and pictures are in {home}; open {home}/report.html" in said
    copy = folder / "copy"
    bucket.mirror(home, bucket.listed(home), copy)
    assert {path.name for path in copy.iterdir()} == {path.name for path in whole.iterdir()}
    assert {path.name for path in copy.iterdir()} > {"results.json", "report.html", "embedding_map.npz", "loss.png"}
    assert numbers(copy) == numbers(whole)
    ended, expected = (json.loads((run / "results.json").read_text()) for run in (copy, whole))
    assert ended | {"peak_memory_mb": 0} == expected | {"peak_memory_mb": 0}
    for run in (copy, whole):
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"4", "6"}
    # Nothing of the run is left on this host.
    assert not [file for file in (folder / "cache/awcl_jax/runs").rglob("*") if file.is_file()]


def test_embed_export_and_report_read_a_run_from_a_bucket(runs, bucket_url, folder, capsys):
    home, whole, _ = runs
    embed.main([home, f"{bucket_url}/phantom", "--split=test", f"--out={folder / 'test.parquet'}"])
    provenance = json.loads(pq.read_schema(folder / "test.parquet").metadata[b"awcl_jax"])
    assert provenance["encoder"] == f"{home}/checkpoints/6"
    assert provenance["source"] == f"{bucket_url}/phantom"
    with pytest.raises(SystemExit):
        embed.main([f"{home}/checkpoints/1", f"{bucket_url}/phantom", f"--out={folder / 'none.parquet'}"])
    assert "has no checkpoint of step 1 (available: up to step 6)" in capsys.readouterr().err

    export.main([home, f"--out={folder / 'exported'}", "--formats=safetensors"])
    bucket.send(folder / "exported", [file.name for file in (folder / "exported").iterdir()], f"{bucket_url}/export")
    expected = open_encoder(whole)
    for place in (home, f"{home}/checkpoints/6"):
        found = open_encoder(place)
        assert found.origin == f"{home}/checkpoints/6"
        chex.assert_trees_all_equal(found.variables, expected.variables)
    found = open_encoder(f"{bucket_url}/export/")
    assert found.origin == f"{bucket_url}/export/encoder.safetensors"

    before = bucket.listed(home)["report.html"].generation
    capsys.readouterr()
    report.main([home])
    assert capsys.readouterr().out.startswith(f"{home}/report.html  ")
    assert bucket.listed(home)["report.html"].generation != before


def test_a_downstream_run_starts_from_a_run_on_a_bucket(runs, bucket_url):
    home, whole, _ = runs
    config = downstream_planes.get_config("tiny")
    config.update_from_flattened_dict({"data.path": f"{bucket_url}/phantom", "model.width_factor": 0.0625})
    encoders = []
    for init in (home, str(whole)):
        config.encoder.init = init
        encoders.append(downstream.set_up(config).given)
    assert encoders[0] is not None
    chex.assert_trees_all_equal(*encoders)


def test_a_missing_bucket_is_one_line(phantom, bucket_url):
    config = fine.get_config("tiny")
    config.update_from_flattened_dict(FIELDS | {"data.path": str(phantom)})
    with pytest.raises(InputError, match=r"^The bucket gs://no-such-one cannot be read \(404.*sign in with"):
        pretrain.run(config, "gs://no-such-one/runs/a")
