"""Metrics in Weights & Biases: the same numbers, one run for a resumed one, nothing about patients; no run ends by it.

The extra `test` has the client; where it is missing, the test with the client itself is skipped.
"""

import getpass
import importlib.util
import json
import math
import os
import socket
import struct
import subprocess
import sys
import types
from pathlib import Path

import pytest

from awcl_jax.config import build
from awcl_jax.config.fields import to_dict
from awcl_jax.pretrain import runner as pretrain
from awcl_jax.runtime import multihost, sharding
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import harness, loggers
from awcl_jax.train.initial_state import initial_state
from awcl_jax.train.loggers import WandbLogger
from awcl_jax.train.metrics import MetricsWriter, NoMetrics, read_metrics
from awcl_jax.train.run_folder import shared_fields
from awcl_jax.train.workdir import Workdir
from configs import fine

ROOT = Path(__file__).parents[2]


class Client(types.ModuleType):
    """A stand-in for the module `wandb`: keeps what it is sent, and fails where a test asks for it.

    Attributes:
      rows: of all runs.
      runs: arguments of `init`.
      fails: names of the calls that raise.
    """

    offline, url = False, "https://wandb.example/run"

    def __init__(self, *fails: str, signed_in: bool = True):
        super().__init__("wandb")
        self.fails, self.signed_in = set(fails), signed_in
        self.rows, self.runs, self.ended = [], [], []

    def _may_fail(self, call):
        if call in self.fails:
            raise RuntimeError(f"{call} failed\nand a second line")

    def setup(self):
        return types.SimpleNamespace(settings=types.SimpleNamespace(mode="online"))

    def login(self, *, prompt, verify):
        assert not prompt
        return self.signed_in

    def Settings(self, **settings):  # noqa: N802
        return settings

    def init(self, **arguments):
        self._may_fail("init")
        self.runs.append(arguments)
        return self

    def define_metric(self, name, step_metric=None):
        assert (name, step_metric) in {("step", None), ("*", "step")}

    def log(self, row):
        self._may_fail("log")
        self.rows.append(row)

    def finish(self, *, exit_code):
        self._may_fail("finish")
        self.ended.append(exit_code)


@pytest.fixture
def client(monkeypatch):
    """Puts a stand-in in the place of `wandb`."""

    def put(*fails, **options):
        module = Client(*fails, **options)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return put


def logged(folder: Path, steps: range, *, warn=pytest.fail) -> None:
    with (
        MetricsWriter(folder, start_step=steps.start - 1) as metrics,
        WandbLogger(metrics, folder, name="fine", fields={"data.size": 96}, warn=warn) as writer,
    ):
        for step in steps:
            writer.write(step, {"loss": 1 / step, "spread": math.nan})
            writer.write(step, {"val/knn/accuracy": 0.5})
            writer.sync()


def test_names_and_steps_are_those_of_the_file(client, tmp_path):
    wandb = client()
    logged(tmp_path, range(1, 4))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert len(wandb.rows) == len(lines) == 6
    assert [repr(sorted(row.items())) for row in wandb.rows] == [repr(sorted(line.items())) for line in lines]
    assert wandb.ended == [0]
    assert wandb.runs[0]["config"] == {"data.size": 96}


def test_a_resumed_run_continues_the_run_and_another_does_not(client, tmp_path):
    wandb = client()
    logged(tmp_path / "a", range(1, 4))
    logged(tmp_path / "a", range(3, 6))
    logged(tmp_path / "b", range(1, 2))
    first, resumed, other = wandb.runs
    assert first["id"] == resumed["id"] != other["id"]
    assert resumed["resume"] == "allow"
    assert [row["step"] for row in wandb.rows[::2]] == [1, 2, 3, 3, 4, 5, 1]


@pytest.mark.parametrize(("fails", "rows", "reason"), [
    ("init", 0, "init failed"), ("log", 0, "log failed"), ("finish", 6, "finish failed"), ("", 0, "not signed in"),
])  # fmt: skip
def test_a_client_that_fails_is_one_line_and_ends_no_run(client, tmp_path, fails, rows, reason):
    wandb, lines = client(fails, signed_in=bool(fails)), []
    logged(tmp_path, range(1, 4), warn=lines.append)
    assert len(wandb.rows) == rows
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 6
    assert len(lines) == 1
    assert reason in lines[0]
    assert "\n" not in lines[0]


def test_a_damaged_id_ends_no_run(client, tmp_path):
    client()
    (tmp_path / loggers.ID_FILE).write_text("{")
    lines: list[str] = []
    logged(tmp_path, range(1, 2), warn=lines.append)
    assert len(lines) == 1


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_process_logs(client, tmp_path, monkeypatch, first):
    wandb = client()
    monkeypatch.setattr(multihost, "first", lambda: first)
    config = fine.get_config("tiny")
    config.train.logger = "wandb"
    model, (_, optimiser) = build.make_model(config), build.make_optimiser(config)
    state = initial_state(model, optimiser, seed=0)
    with harness.open_records(Workdir(tmp_path), state, sharding.make_mesh(), config=to_dict(config)) as records:
        records.writer.write(1, {"loss": 1.0})
        assert isinstance(records.writer, WandbLogger if first else NoMetrics)
    assert len(wandb.rows) == first


def test_without_the_package_a_run_ends_before_it_computes(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    config = fine.get_config("tiny")
    config.train.logger = "wandb"
    with pytest.raises(InputError, match=r"needs the package wandb. Run pip install 'awcl_jax\[wandb\]'"):
        pretrain.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_paths_are_not_shared():
    fields = shared_fields(
        {
            "model": {"init": "/home/ada/weights.safetensors"},
            "encoder": {"init": "hf://lab/encoder@main"},
            "data": {"path": "/home/ada/scans", "unlabelled": ["/home/ada/more"], "size": 96},
        }
    )
    assert fields == {"model.init": "weights.safetensors", "encoder.init": "hf://lab/encoder@main", "data.size": 96}


def records_of(file: Path):
    """Yield the records of W&B's own file: blocks of 32 KiB, in them (checksum, length, kind, bytes)."""
    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:  # no room for another head
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


@pytest.mark.slow
def test_offline_it_keeps_the_numbers_of_the_run_and_nothing_else(tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    secret = tmp_path / "doe_jane"
    command = [sys.executable, "-m", "awcl_jax.main", "--config=configs/fine.py:tiny", "--config.train.logger=wandb"]
    command += ["--config.report.pictures=False", f"--workdir={secret / 'run'}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    for _ in range(2):  # the second finds all steps taken
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
    first, second = sorted((tmp_path / "wandb").rglob("*.wandb"))
    assert first.stem == second.stem == f"run-{json.loads((secret / 'run' / loggers.ID_FILE).read_text())['id']}"
    rows = []
    for content in records_of(first):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.HasField("history"):
            row = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in row.items() if not name.startswith("_")})
    assert rows == read_metrics(secret / "run" / "metrics.jsonl")
    for private in ("doe_jane", str(tmp_path), str(ROOT), socket.gethostname(), getpass.getuser(), "--config"):
        assert private not in first.read_text("latin-1"), private
