"""The main command: help, and what it says to bad input."""

import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from awcl_jax import main
from awcl_jax.config.pretraining import default_config
from awcl_jax.pretrain import runner as pretrain
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import frame_record

ROOT = Path(__file__).parents[1]
FINE = "--config=configs/fine.py"


def command(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "awcl_jax.main", *arguments],
        cwd=cwd,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def frames(prepare_frames) -> Path:
    """Frames of eight training patients and two for testing, in two anatomies."""
    return prepare_frames(
        **{
            split: [
                frame_record(f"{patient}{anatomy}", patient, anatomy_fine=anatomy, anatomy_coarse=anatomy)
                for patient in patients
                for anatomy in ("femur", "abdomen")
            ]
            for split, patients in (("train", "abcdefgh"), ("test", "yz"))
        }
    )


@pytest.mark.slow
def test_a_preview_leaves_a_picture_beside_the_folder_and_no_run(frames, tmp_path):
    data = (f"--config.data.path={frames}", "--config.sampler.batch_size=8")
    done = command(f"{FINE}:tiny", *data, f"--workdir={tmp_path / 'run'}", "--preview")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"The picture is {tmp_path / 'run-preview.png'}; nothing was trained." in done.stdout
    assert (tmp_path / "run-preview.png").is_file()
    assert not (tmp_path / "run").exists()
    downstream = command("--config=configs/downstream_planes.py:tiny", *data, "--preview")
    assert downstream.returncode == 1
    assert "--preview shows the batches of pretraining" in downstream.stderr


@pytest.mark.slow
@pytest.mark.parametrize("here", [".", "../here", "~/here"])
def test_a_preview_of_a_folder_without_a_name_of_its_own_is_named_by_that_folder(here, frames, tmp_path):
    (tmp_path / "here").mkdir()
    data = (f"--config.data.path={frames}", "--config.sampler.batch_size=8")
    options = (f"--config={ROOT}/configs/fine.py:tiny", *data, f"--workdir={here}", "--preview")
    done = command(*options, cwd=tmp_path / "here", PYTHONPATH=str(ROOT), HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "here-preview.png").is_file()
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("moment", [datetime.datetime(2026, 3, 1, 12, 30, 59), datetime.datetime(2126, 1, 1)])
def test_a_run_without_a_folder_starts_in_a_new_one_though_the_clock_was_set_back(moment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return moment

    monkeypatch.setattr(main.datetime, "datetime", Clock)
    later = moment + datetime.timedelta(seconds=1)
    first, second = (f"runs/{at:%Y%m%d-%H%M%S}-fine" for at in (moment, later))
    assert main._new_workdir("fine") == first
    Path(first).mkdir(parents=True)
    assert main._new_workdir("fine") == second


def test_help_names_the_flags():
    done = command("--help")
    assert done.returncode == 0
    assert "--config" in done.stdout
    assert "--workdir" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--config is missing. Set it, for example --config=configs/fine.py"),
        pytest.param(("configs/fine.py",), "configs/fine.py", marks=pytest.mark.slow),
        (("--config=configs/nope.py",), "configs/nope.py"),
        pytest.param((FINE, "--wrkdir=runs/a"), "Did you mean: workdir", marks=pytest.mark.slow),
        pytest.param(
            (f"{FINE}:papr",),
            "Unknown variant 'papr'; use one of tiny, fetal_planes_db, from_weights, paper",
            marks=pytest.mark.slow,
        ),
        pytest.param((FINE, "--config.train.stepz=4"), 'Did you mean "steps"', marks=pytest.mark.slow),
        pytest.param((FINE, "--config.trane.steps=4"), "trane", marks=pytest.mark.slow),
        pytest.param((FINE, "--config.train.steps=many"), "config.train.steps.*many", marks=pytest.mark.slow),
        ((FINE, "--workdir="), "--workdir must not be empty. Name a file or folder"),
        pytest.param((FINE, "--workdir= "), "--workdir must not be empty", marks=pytest.mark.slow),
        pytest.param(
            (f"{FINE}:tiny", "--preview", "--workdir=/"),
            "--preview writes its picture beside the run's folder.*; got /",
            marks=pytest.mark.slow,
        ),
        ((FINE, "--config.data.path=no-such-folder"), "There is no folder no-such-folder"),
        pytest.param(
            (FINE, "--workdir=s3://bucket/run"),
            "A folder must be a path, or gs://BUCKET/FOLDER.*got 's3://bucket/run'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (FINE, "--processes=2"),
            "Pass --coordinator=HOST:PORT, --processes=N and --process=I together",
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) and value else None,
)
def test_bad_arguments_end_in_one_line_and_no_folder(arguments, said, tmp_path):
    done = command(f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert re.search(said, line)
    assert list(tmp_path.iterdir()) == []


def test_all_that_is_wrong_with_a_configuration_comes_in_one_line(tmp_path):
    done = command(
        *(f"{FINE}:tiny", "--config.anatomy_ratio=1.5", "--config.augment.size=64", "--config.sampler.batch_size=12"),
        f"--workdir={tmp_path / 'run'}",
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "config.anatomy_ratio must be a share from 0 to 1; got 1.5" in line
    assert "config.augment.size must be at most config.data.size=" in line
    assert "config.sampler.batch_size must be divisible by the 8 devices; got 12" in line
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be_is_one_line(frames, tmp_path):
    (tmp_path / "taken").write_text("x")
    done = command(
        *(f"{FINE}:tiny", f"--config.data.path={frames}", "--config.sampler.batch_size=8"),
        *("--config.sampler.scans_per_anatomy=2", f"--workdir={tmp_path / 'taken'}"),
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path / "taken") in line
    assert (tmp_path / "taken").read_text() == "x"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"anatomy_ratio": 1.5}, "config.anatomy_ratio"),
        ({"augment.size": 200}, "config.augment.size"),
        ({"data.path": "no-such-folder"}, "There is no folder no-such-folder"),
        ({"data.dataset": "fetal_planes_db", "data.path": ""}, "config.data.path is missing. Prepare the dataset with"),
        ({"data.preset": "huge", "data.path": ""}, "huge"),
        ({"sampler.batch_size": 16}, "larger than the 14 training frames"),
        ({"sampler.scans_per_anatomy": 9}, "too few for 1 anatomies x 9 scans"),
        ({"anatomy_ratio": 0.0}, "No training frame has a label"),
        ({"data.val_share": 0.99}, "leaves none for training"),
        ({"eval.anatomies": ("heart",)}, r"config.eval.anatomies has unknown names \['heart'\]"),
        ({"eval.anatomies": ("thorax",)}, "thorax|labelled"),
    ],
    ids=str,
)
def test_an_invalid_run_is_refused_before_its_folder_is_made(fields, said, frames, tmp_path):
    config = default_config()
    config.data.path, config.sampler.batch_size, config.sampler.scans_per_anatomy = str(frames), 8, 2
    config.eval.batch_size = 8
    config.train.steps, config.optim.warmup_steps, config.report.pictures = 1, 0, False
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError, match=said) as caught:
        pretrain.run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_trains_and_the_same_command_finds_it_finished(frames, tmp_path):
    arguments = (
        *(f"{FINE}:tiny", f"--config.data.path={frames}", "--config.sampler.batch_size=8"),
        *("--config.sampler.scans_per_anatomy=2", "--config.train.steps=6", "--config.train.log_every=2"),
        *("--config.report.pictures=false", f"--workdir={tmp_path / 'run'}"),
    )
    first = command(*arguments, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert first.returncode == 0, first.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == 6
    again = command(*arguments, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert again.returncode == 0, again.stderr
    assert "Resuming from step 6 of 6" in again.stdout
    assert json.loads((tmp_path / "run" / "results.json").read_text())["trained"] == results["trained"]
