"""Whole runs on a small phantom: what they learn, which files they write, and how they resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import optax
import pytest

from awcl_jax.data import pipeline
from awcl_jax.data.about import About, as_json
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest.phantom import Phantom, PhantomConfig
from awcl_jax.models.weights import save_torch_resnet
from awcl_jax.pretrain import runner as pretrain
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import initial_state as first_state
from awcl_jax.train.run_folder import read_frames
from awcl_jax.train.workdir import Workdir
from configs import fine, moco, scan, simclr
from tests.helpers.configurations import tiny
from tests.helpers.fans import with_fans
from tests.helpers.frames import frame_record
from tests.helpers.killed_runs import final_state, numbers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(phantom, tmp_path_factory):
    """Return folder and results of a run with all options on."""
    workdir = tmp_path_factory.mktemp("run") / "fine"
    config = tiny(phantom, **{"report.pictures": True, "train.steps": 60, "train.eval_every": 30})
    return workdir, pretrain.run(config, workdir)


@pytest.mark.slow
def test_results_name_the_dataset_and_not_the_configuration(trained):
    workdir, results = trained
    described = [About("phantom", "tiny", "simulated", "the simulation", confirmed=True)]
    stored = json.loads((workdir / "config.json").read_text())
    assert results["datasets"] == stored["datasets"] == as_json(described)


@pytest.mark.parametrize("on", [False, True])
def test_overlays_are_masked_where_the_configuration_says_so(phantom, on):
    data = pretrain.set_up(tiny(phantom, **{"data.mask_overlays": on})).data
    frames = np.arange(len(data.train.index))
    outside = data.train.reader.read(frames)[:, 0, :]  # the top row, where machines write
    assert data.test.reader.mask_overlays == on
    assert (outside.max() > 0) != on


@pytest.mark.parametrize("pairs", ["frame", "cross_scan"])
def test_fans_reach_the_views_of_a_run(pairs, phantom, tmp_path):
    config = tiny(with_fans(phantom, tmp_path), **{"augment.beams": "fan", "sampler.pairs": pairs})
    setup = pretrain.set_up(config)
    batch = next(pretrain.batches_of(config, setup))
    reader, frames = setup.data.train.reader, batch.arrays["frame"]
    expected = np.stack([reader.fans(frames[:, 0]), reader.fans(frames[:, 1])], axis=1)
    np.testing.assert_array_equal(batch.arrays["fans"], expected if pairs == "cross_scan" else expected[:, 0])
    known = (expected[..., 5] > 0).mean()
    assert 0 < known < 1
    assert "First batch of" in pretrain.preview(config, tmp_path / "picture.png")
    config.augment.beams = "fixed"
    assert "fans" not in next(pretrain.batches_of(config, setup)).arrays


def test_fans_are_asked_for_only_where_a_dataset_has_one(phantom):
    with pytest.raises(InputError, match=r"beams=fan needs the fans of frames, and .* has none\."):
        pretrain.set_up(tiny(phantom, **{"augment.beams": "fan"}))


@pytest.mark.slow
def test_a_run_along_the_beams_of_fans_ends_with_scores(phantom, tmp_path):
    dataset = with_fans(phantom, tmp_path)
    fields = {"augment.beams": "fan", "train.steps": 6, "train.eval_every": 3, "report.pictures": True}
    results = pretrain.run(tiny(dataset, **fields, **{"optim.warmup_steps": 2}), tmp_path / "run")
    assert np.isfinite(results["health"]["trained"]["effective_rank"])
    assert (tmp_path / "run/views.png").exists()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("method", "changed", "alike"),
    [
        (simclr, {}, True),
        (scan, {}, True),
        (fine, {"name": "other", "data.path": "other", "sampler.unlabelled_share": 0.5, "anatomy_ratio": 0.1}, True),
        (fine, {"model.init": "resnet.safetensors"}, True),
        (moco, {}, False),
        (fine, {"loss.temperature": 0.5}, False),
        (fine, {"optim.learning_rate": 0.5}, False),
        (fine, {"train.steps": 31}, False),
        (fine, {"train.encode_chunks": 2}, False),
        (fine, {"model.width_factor": 0.25}, False),
        (fine, {"augment.flip": 0.0}, False),
        (fine, {"seed": 1}, False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_runs_share_programs_where_nothing_in_them_differs(method, changed, alike):
    config, other = fine.get_config("tiny"), method.get_config("tiny")
    other.update_from_flattened_dict(changed)
    ours = pretrain.make_programs(config, granularities=1)
    assert (pretrain.make_programs(other, granularities=1) is ours) == alike
    assert pretrain.make_programs(config, granularities=2) is not ours


def test_a_folder_that_another_run_works_in_is_refused(phantom, tmp_path):
    with Workdir(tmp_path) as other:
        other.hold()
        with pytest.raises(InputError, match="Another process is running"):
            pretrain.run(tiny(phantom), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_may_start_from_weights(phantom, tmp_path):
    config = tiny(phantom, moco)
    drawn = first_state.initial_state(pretrain.set_up(config).programs.model, optax.identity(), seed=0)
    given = {name: jax.tree.map(lambda x: x + 1, getattr(drawn, name)["encoder"]) for name in ("params", "batch_stats")}
    weights = tmp_path / "encoder.safetensors"
    save_torch_resnet(weights, given, mean=config.augment.mean, std=config.augment.std)
    config.model.init = str(weights)
    setup = pretrain.set_up(config)
    queue = pretrain.make_queue(config, setup.labels)
    state = first_state.initial_state(
        setup.programs.model, setup.programs.optimiser, seed=0, queue=queue, given=setup.given
    )
    chex.assert_trees_all_equal(state.params["encoder"], given["params"])
    chex.assert_trees_all_equal(state.batch_stats["encoder"], given["batch_stats"])
    chex.assert_trees_all_equal(state.params["projection"], drawn.params["projection"])
    chex.assert_trees_all_equal(state.momentum.params, state.params)
    config.model.width_factor = 1.0
    with pytest.raises(InputError, match=r"encoder\.safetensors"):
        pretrain.set_up(config)


@pytest.mark.slow
@pytest.mark.slow
def test_a_finished_run_is_lengthened_by_one_that_starts_from_it(trained, phantom, tmp_path, capsys):
    before, results = trained
    fields = {"model.init": str(before), "model.init_head": True, "train.steps": 2, "optim.warmup_steps": 0}
    longer = pretrain.run(tiny(phantom, **fields), tmp_path / "longer")
    assert longer["untrained"] == results["trained"]
    assert longer["initial"]["source"] == f"{before} (step 60 of 60)"
    assert f"Starting from {before} (step 60 of 60): loaded encoder" in capsys.readouterr().out


@pytest.mark.slow
def test_frames_without_any_label_are_trained_on_but_not_scored(prepare_frames, tmp_path, capsys):
    def records(patients):
        return [frame_record(f"{p}{i}", p, anatomy_fine=-1, anatomy_coarse=-1) for p in patients for i in range(4)]

    data = prepare_frames(train=records("abcdef"), val=records("g"), test=records("h"))
    config = tiny(
        data, simclr, **{"train.steps": 4, "train.eval_every": 2, "optim.warmup_steps": 1, "report.pictures": True}
    )
    results = pretrain.run(config, tmp_path / "run")
    assert results["trained"] == results["untrained"] == {}
    said = capsys.readouterr().out
    assert "No frame has a label of the anatomies to score, so nothing is scored." in said
    assert "Scoring pixels" not in said
    assert not any(name.startswith("val/") for line in numbers(tmp_path / "run") for name in line)
    assert (tmp_path / "run" / "embeddings.png").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    # Labels of other anatomies than those evaluated are an error.
    config.data.path = str(prepare_frames("labelled", train=records("abcdef"), test=[frame_record("x", "x")]))
    with pytest.raises(InputError, match=r"No train frame .* shows any of the anatomies to classify"):
        pretrain.set_up(config)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")  # it computes more than it compiles
def test_a_run_learns_anatomy(tmp_path):
    # The tiny phantom has too few patients to learn from; these are enough to classify the planes that differ most.
    patients = (("train", 24), ("val", 4), ("test", 10))
    small = PhantomConfig(name="small", patients=patients, frames_per_scan=18, image_size=64)
    builder = Phantom(config=small, data_dir=tmp_path / "data", file_format="array_record")
    builder.download_and_prepare()
    frames = {"data.size": 64, "augment.size": 48, "model.width_factor": 0.25, "sampler.batch_size": 32}
    training = {"train.steps": 300, "train.eval_every": 300, "train.checkpoint_every": 300, "optim.learning_rate": 2e-3}
    planes = ("HCP", "FLP", "SPINE_SAG", "PROFILE", "ACP", "KIDNEYS_CORONAL")
    config = tiny(Path(builder.data_dir), **frames, **training, **{"eval.anatomies": planes})
    results = pretrain.run(config, tmp_path / "run")
    losses = [line["loss"] for line in numbers(tmp_path / "run") if "loss" in line]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    # The mean of both is 0.50 untrained. Trained it was 0.71 and 0.58 in two runs that began to differ by rounding.
    untrained, trained = (
        np.mean([results[column][score]["value"] for score in ("knn/macro_f1", "probe/macro_f1")])
        for column in ("untrained", "trained")
    )
    assert trained > untrained + 0.02


@pytest.mark.slow
def test_a_run_writes_the_files_that_users_look_for(trained, phantom):
    workdir, results = trained
    for name in ("loss.png", "pairs.png", "views.png", "embeddings.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG"), name
    assert json.loads((workdir / "results.json").read_text()) == results
    assert results["frames"]["test"] == {"frames": 96, "labelled": 62, "scans": 6, "patients": 6}
    assert sum(results["machines"].values()) == results["frames"]["train"]["frames"]
    index = ScanIndex.from_dataset(phantom)
    names = [index.machine_names[machine] for machine in index.machines]
    machines = dict(zip(map(str, index.frame_ids), names, strict=True))
    rows = read_frames(workdir / "test_frames.csv")
    assert len({row["machine"] for row in rows}) > 1
    assert [row["machine"] for row in rows] == [machines[row["frame"]] for row in rows]
    assert list((workdir / "tensorboard").glob("events.*"))
    lines = numbers(workdir)
    assert [line["step"] for line in lines if "loss" in line] == [10, 20, 30, 40, 50, 60]
    assert [line["step"] for line in lines if "val/knn/macro_f1" in line] == [30, 60]
    composed = next(line for line in lines if "batch/positives" in line)
    assert composed["batch/cross_scan"] > 0.5
    assert composed["collapsed_loss"] == pytest.approx(np.log(2 * 16 - 1))


@pytest.mark.slow
def test_the_same_command_again_only_repeats_the_results(trained, phantom, capsys):
    workdir, results = trained
    before = numbers(workdir)
    config = tiny(phantom, **{"train.steps": 60, "train.eval_every": 30})
    # As an earlier version without two of the fields would have written it.
    claim = json.loads((workdir / "config.json").read_text())
    del claim["config"]["loss"]["exchange"], claim["config"]["model"]["strides"]
    (workdir / "config.json").write_text(json.dumps(claim))
    config.report.pictures = True
    again = pretrain.run(config, workdir)
    assert again["trained"] == results["trained"]
    assert numbers(workdir) == before
    assert "Resuming from step 60 of 60" in capsys.readouterr().out


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(moco, marks=pytest.mark.slow, id="moco"),
        pytest.param(simclr, marks=pytest.mark.release, id="simclr"),
        pytest.param(scan, marks=pytest.mark.release, id="scan"),
    ],
)
def test_the_other_methods_run(method, phantom, tmp_path):
    results = pretrain.run(tiny(phantom, method, **{"train.steps": 3, "optim.warmup_steps": 0}), tmp_path / "run")
    assert 0 <= results["trained"]["probe/macro_f1"]["value"] <= 1
    composed = next(line for line in numbers(tmp_path / "run") if "batch/positives" in line)
    if method is moco:
        assert composed["collapsed_loss"] < np.log(moco.get_config().queue.size), "the queue is not full yet"
    if method is not scan:
        assert composed["batch/positives"] == 1  # its own other view
        assert composed["batch/own_view_only"] == 1
    else:
        assert composed["batch/positives"] > 1
        assert composed["batch/cross_scan"] == 0


QUEUE = {"queue.size": 48, "granularity": "both", "train.encode_chunks": 2}


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"sampler.pairs": "cross_scan"}, QUEUE], ids=["cross-scan", "queue"])
def test_a_run_that_dies_resumes_bit_for_bit(fields, phantom, tmp_path, monkeypatch):
    config = tiny(phantom, **fields)
    pretrain.run(config, tmp_path / "unbroken")

    def broken(*args, **kwargs):
        for batch in pipeline_batches(*args, **kwargs):
            if batch.step == 17:
                raise RuntimeError("the power is gone")
            yield batch

    pipeline_batches = pipeline.batches
    monkeypatch.setattr(pipeline, "batches", broken)
    with pytest.raises(RuntimeError, match="power"):
        pretrain.run(config, tmp_path / "broken")
    monkeypatch.undo()
    pretrain.run(config, tmp_path / "broken")
    chex.assert_trees_all_equal(final_state(tmp_path / "broken", 30), final_state(tmp_path / "unbroken", 30))
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "unbroken")


@pytest.mark.slow
def test_a_killed_command_resumes_bit_for_bit(phantom, tmp_path):
    def start(name):
        command = [sys.executable, "-m", "awcl_jax.main", "--config=configs/fine.py:tiny"]
        options = [f"--config.data.path={phantom}", "--config.train.steps=40", "--config.report.pictures=False"]
        options += [f"--workdir={tmp_path / name}"]
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen([*command, *options], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    unbroken = start("unbroken")
    assert unbroken.wait(timeout=300) == 0, unbroken.stderr.read()
    for after in (10, 20):
        killed = start("killed")
        while killed.poll() is None and not (tmp_path / "killed" / "checkpoints" / str(after)).exists():
            time.sleep(0.005)
        killed.send_signal(signal.SIGKILL)
        killed.wait(timeout=60)
    final = start("killed")
    assert final.wait(timeout=300) == 0, final.stderr.read()
    chex.assert_trees_all_equal(final_state(tmp_path / "killed", 40), final_state(tmp_path / "unbroken", 40))
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "unbroken")


@pytest.mark.slow
def test_a_loss_that_stays_not_finite_stops_the_run(phantom, tmp_path):
    diverging = {"optim.name": "sgd", "optim.learning_rate": 1e30, "optim.warmup_steps": 0}
    config = tiny(phantom, **diverging, **{"train.checkpoint_every": 1, "train.bad_steps": 3})
    for _ in range(2):  # the same command ends the same way again
        with pytest.raises(InputError, match=r"became .* at step .*, the last of 3 such steps .*learning_rate"):
            pretrain.run(config, tmp_path / "run")
    bad = [json.loads(line) for line in (tmp_path / "run" / "bad_steps.jsonl").read_text().splitlines()]
    first, *_ = steps = [line["step"] for line in bad]
    assert steps == [first, first + 1, first + 2]
    setup = pretrain.set_up(config)
    for line in bad:
        frames = setup.plan.frames(line["step"] - 1)
        assert line["frames"] == [str(setup.data.train.index.frame_ids[frame]) for frame in frames]
    kept = sorted(int(folder.name) for folder in (tmp_path / "run" / "checkpoints").iterdir() if folder.name.isdigit())
    assert kept
    chex.assert_tree_all_finite(final_state(tmp_path / "run", kept[0])["params"])


@pytest.mark.slow
def test_real_frames_are_pretrained_on(real_dataset, tmp_path):
    config = fine.get_config("fetal_planes_db")
    config.data.path = str(real_dataset)
    small = {"data.size": 48, "augment.size": 32, "model.width_factor": 0.125, "train.steps": 40}
    config.update_from_flattened_dict(small | {"report.map_frames": 60})
    results = pretrain.run(config, tmp_path / "run")
    losses = [line["loss"] for line in numbers(tmp_path / "run") if "loss" in line]
    assert losses[-1] < losses[0]
    assert results["trained"]["probe/accuracy"]["frames"] == 563  # test frames of the six anatomies
    assert results["trained"]["probe/accuracy"]["patients"] == 243


def test_a_dataset_without_a_path_names_the_command_to_prepare_it(tmp_path):
    config = fine.get_config("fetal_planes_db")
    with pytest.raises(InputError, match=r"awcl_jax\.ingest fetal_planes_db"):
        pretrain.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_anatomies_are_named(phantom, tmp_path):
    with pytest.raises(InputError, match=r"toes.*4CH"):
        pretrain.run(tiny(phantom, **{"eval.anatomies": ("toes",)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
