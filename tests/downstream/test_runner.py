"""Whole downstream runs on a small phantom: what they learn, which files they write, and how they resume."""

import csv
import json

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.config.fields import to_dict
from awcl_jax.config.initial import Initial
from awcl_jax.data import pipeline
from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.downstream import runner as downstream
from awcl_jax.evaluate.head_circumference import agreement_scores, head_circumference
from awcl_jax.evaluate.verdict import said_of_few
from awcl_jax.ingest.public.hc18 import Hc18
from awcl_jax.models.resnet import make_resnet
from awcl_jax.models.weights import save_torch_resnet
from awcl_jax.pretrain import runner as pretrain
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.run_folder import open_run
from configs import downstream_planes, downstream_segmentation, fine
from tests.helpers.configurations import tiny as tiny_pretraining
from tests.helpers.fans import with_fans
from tests.helpers.frames import frame_record
from tests.helpers.killed_runs import final_state, numbers


def tiny(phantom, task=downstream_segmentation, **fields):
    config = task.get_config("tiny")
    config.data.path = str(phantom)
    config.report.pictures = False
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def segmented(phantom, tmp_path_factory):
    """Return folder and results of a segmentation with all options on."""
    workdir = tmp_path_factory.mktemp("run") / "segmentation"
    training = {"train.steps": 200, "train.validate_every": 100}
    return workdir, downstream.run(tiny(phantom, **training, **{"report.pictures": True}), workdir)


@pytest.mark.slow
def test_a_segmentation_finds_more_than_background(segmented):
    _, results = segmented
    assert results["baseline"]["dice/mean"]["value"] == 0
    # From 28 frames of 48 pixels: 0.8 of the head, the thin femur not at all.
    assert results["test"]["dice/head"]["low"] > 0.3
    assert results["test"]["dice/head"]["value"] > 0.6
    assert results["test"]["hc/mae_mm"]["value"] < 40
    assert results["hc_reference"] == "mask"
    assert results["training_frames"] == 28


@pytest.mark.slow
def test_a_run_writes_the_files_that_users_look_for(segmented):
    workdir, results = segmented
    for name in ("loss.png", "overlays.png", "head_circumference.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG"), name
    assert json.loads((workdir / "results.json").read_text()) == results
    chosen = {line["step"]: line["val/dice"] for line in numbers(workdir) if "val/dice" in line}
    assert results["validation"]["val/dice"] == chosen[results["chosen_step"]] == max(chosen.values())
    with (workdir / "test_frames.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    dice = [float(row["dice/head"]) for row in rows if row["dice/head"]]
    assert len(dice) == results["test"]["dice/head"]["frames"]
    assert np.mean(dice) == pytest.approx(results["test"]["dice/head"]["value"], abs=1e-5)
    assert len({row["patient"] for row in rows}) == results["test"]["dice/mean"]["patients"]
    assert len({row["machine"] for row in rows}) > 1
    assert sum(results["machines"].values()) == results["training_frames"]
    assert results["verdict"] == said_of_few(results["test"]["dice/mean"]["patients"])
    assert len(results["verdict"]) == 1


@pytest.mark.slow
def test_the_same_command_again_only_repeats_the_results(segmented, phantom, capsys):
    workdir, results = segmented
    before = numbers(workdir)
    again = downstream.run(tiny(phantom, **{"train.steps": 200, "train.validate_every": 100}), workdir)
    assert again["test"] == results["test"]
    assert numbers(workdir) == before
    assert "Resuming from step 200 of 200" in capsys.readouterr().out


@pytest.mark.slow
def test_a_classification_beats_the_most_frequent_anatomy(phantom, tmp_path):
    training = {"train.steps": 160, "train.validate_every": 40, "task.granularity": "coarse"}
    training |= {"optim.learning_rate": 2e-3, "model.width_factor": 0.25}
    results = downstream.run(
        tiny(phantom, downstream_planes, **training, **{"report.pictures": True}), tmp_path / "run"
    )
    # Of eight anatomies: accuracy 0.45 and macro-F1 0.36 here, where the baseline has 0.19 and 0.04. Half as long a
    # training of a smaller network ended at the baseline on one CPU and at twice its accuracy on another.
    assert results["test"]["accuracy"]["value"] > results["baseline"]["accuracy"]["value"] + 0.05
    assert results["test"]["macro_f1"]["value"] > 2 * results["baseline"]["macro_f1"]["value"]
    assert (tmp_path / "run" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    counts, names = np.array(results["confusion"]), results["anatomies"]
    assert counts.sum() == results["test"]["accuracy"]["frames"]
    assert np.trace(counts) / counts.sum() == pytest.approx(results["test"]["accuracy"]["value"])
    femur = names.index("femur")
    assert results["test"]["recall/femur"]["value"] == pytest.approx(counts[femur, femur] / counts[femur].sum())


@pytest.mark.slow
@pytest.mark.parametrize("task", [downstream_segmentation, downstream_planes], ids=["segmentation", "planes"])
def test_a_run_that_dies_resumes_bit_for_bit(task, phantom, tmp_path, monkeypatch):
    config = tiny(phantom, task, **{"train.steps": 24, "train.validate_every": 8})
    unbroken = downstream.run(config, tmp_path / "unbroken")

    def broken(*args, **kwargs):
        for batch in supervised_batches(*args, **kwargs):
            if batch.step == 13:
                raise RuntimeError("the power is gone")
            yield batch

    supervised_batches = pipeline.supervised_batches
    monkeypatch.setattr(pipeline, "supervised_batches", broken)
    with pytest.raises(RuntimeError, match="power"):
        downstream.run(config, tmp_path / "broken")
    monkeypatch.undo()
    results = downstream.run(config, tmp_path / "broken")
    chex.assert_trees_all_equal(final_state(tmp_path / "broken", 24), final_state(tmp_path / "unbroken", 24))
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "unbroken")
    assert (results["test"], results["chosen_step"]) == (unbroken["test"], unbroken["chosen_step"])


@pytest.mark.parametrize("task", [downstream_planes, downstream_segmentation])
def test_fans_reach_the_batches(task, phantom, tmp_path):
    config = tiny(with_fans(phantom, tmp_path), task, **{"augment.beams": "fan"})
    setup = downstream.set_up(config)
    batch = next(downstream.batches_of(config, setup))
    expected = setup.data.train.reader.fans(setup.plan.frames(0))
    np.testing.assert_array_equal(batch.arrays["fans"], expected)
    assert 0 < (expected[:, 5] > 0).mean() < 1
    with pytest.raises(InputError, match=r"beams=fan needs the fans of frames, and .* has none\."):
        downstream.set_up(tiny(phantom, task, **{"augment.beams": "fan"}))


@pytest.mark.slow
def test_patience_ends_a_run_for_good_and_the_best_is_tested(phantom, tmp_path, monkeypatch):
    scores = iter((0.1, 0.5, 0.5, 0.2, 0.3, 0.9))
    monkeypatch.setattr("awcl_jax.downstream.tasks.Planes.validate", lambda *_, **__: {"val/macro_f1": next(scores)})
    config = tiny(phantom, downstream_planes, **{"train.validate_every": 2, "train.patience": 2})
    results = downstream.run(config, tmp_path / "run")
    # Two that are no better follow 0.5 at step 4. The first of them is as good, and the later of equals is chosen.
    assert (results["chosen_step"], results["steps"], results["validation"]["val/macro_f1"]) == (6, 8, 0.5)
    lines = numbers(tmp_path / "run")
    again = downstream.run(config, tmp_path / "run")
    assert again["test"] == results["test"]
    assert again["steps"] == 8
    assert numbers(tmp_path / "run") == lines


@pytest.fixture(scope="module")
def pretrained(phantom, tmp_path_factory):
    """Return the folder of a short pretraining run."""
    folder = tmp_path_factory.mktemp("pretrained") / "fine"
    steps = {"train.steps": 2, "train.checkpoint_every": 1, "optim.warmup_steps": 0}
    pretrain.run(tiny_pretraining(phantom, **steps), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("step", [None, 1])
def test_a_frozen_encoder_is_that_of_the_run_or_of_its_checkpoint(step, pretrained, phantom, tmp_path):
    init = pretrained if step is None else pretrained / "checkpoints" / "1"
    start = {"encoder.init": str(init), "encoder.frozen": True}
    training = {"train.steps": 3, "optim.warmup_steps": 0}
    downstream.run(tiny(phantom, downstream_planes, **start, **training), tmp_path / "run")
    given, kept = final_state(pretrained, step or 2), final_state(tmp_path / "run", 3)
    for tree in ("params", "batch_stats"):
        chex.assert_trees_all_equal(kept[tree]["encoder"], given[tree]["encoder"])


@pytest.mark.slow
def test_circumferences_of_hc18s_masks_are_the_published_ones(real_data, tmp_path):
    builder = Hc18(source=real_data / "HC18", data_dir=tmp_path)
    builder.download_and_prepare()
    index = ScanIndex.from_dataset(builder.data_dir)
    reader, frames = FrameReader(index, size=128), np.arange(0, len(index), 5)
    heads = zip(reader.read_masks(frames) != 0, reader.pixel_sizes(frames), strict=True)
    measured = np.array([head_circumference(mask, pixel) for mask, pixel in heads])
    scores = agreement_scores(measured, reader.measures("hc_mm", frames), index.patients[frames])
    values = {score.name: score.value for score in scores}
    # The mask takes in the line that was drawn about the head, half a pixel of it too much.
    assert values["unmeasured"] == 0
    assert values["mae_mm"] < 1.5
    assert values["limit_high_mm"] - values["limit_low_mm"] < 4


# Choice of a checkpoint ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "best", "out"),
    [
        ((0.1,), 1, False),
        ((0.3, 0.2), 1, False),
        ((0.3, 0.2, 0.1), 1, True),
        ((0.3, 0.2, 0.3), 3, True),
        ((0.0, 0.0, 0.0), 3, True),
        ((0.2, 0.1, 0.3), 3, False),
    ],
)
def test_patience_counts_validations_since_the_best(scores, best, out):
    history = dict(enumerate(scores, start=1))
    assert downstream.best_step(history) == best
    assert downstream.out_of_patience(history, 2) == out
    assert not downstream.out_of_patience(history, None)


# Bad input ----------------------------------------------------------------------------------------------------------


def records(*patients, masks=True, **fields):
    """Return two frames of each patient: of the femur, and of the abdomen with a brain in its mask."""
    brain = cv2.circle(np.zeros((32, 40), np.uint8), (20, 16), 8, 1, -1)
    made = []
    for patient in patients:
        for anatomy, shown in (("femur", 0 * brain), ("abdomen", brain)):
            given = {"anatomy_fine": anatomy, "anatomy_coarse": anatomy} | ({"mask": shown} if masks else {}) | fields
            made.append(frame_record(f"{patient}{anatomy}", patient, **given))
    return made


SPLITS = {"train": "abcdef", "val": "uv", "test": "yz"}


@pytest.mark.parametrize(
    ("task", "fields", "given", "said"),
    [
        (
            downstream_segmentation,
            {},
            {"masks": False},
            r"needs masks; the dataset .* has none\. Choose another dataset",
        ),
        (downstream_segmentation, {"task.head": ("skull",)}, {}, r"\['skull'\]; the masks of .* show brain"),
        (downstream_segmentation, {}, {"mask": np.zeros((32, 40), np.uint8)}, "No training mask .* shows any of brain"),
        (downstream_segmentation, {}, {"pixel_mm": np.nan}, "has no pixel sizes.*config.task.head"),
        (downstream_segmentation, {"task.label_fraction": 0.1}, {}, "keeps 1 of 12 training frames, fewer than the 2"),
        (downstream_planes, {"task.anatomies": ("toes",)}, {}, r"\['toes'\]; the data has abdomen"),
        (downstream_planes, {"task.anatomies": ("thorax",)}, {}, "No training frame .* shows any of .*thorax"),
        (
            downstream_planes,
            {"task.anatomies": ("femur",)},
            {},
            r"show only femur\. Training needs at least two anatomies",
        ),
        (downstream_planes, {"task.label_fraction": 0.05}, {}, "keeps 1 of 12 training frames, fewer than the 2"),
        (downstream_planes, {"data.path": "no-such-folder"}, {}, "There is no folder no-such-folder"),
        (downstream_planes, {"data.path": "", "data.dataset": "hc18"}, {}, "ingest hc18"),
        (downstream_planes, {"encoder.init": "no-such-run"}, {}, r"no-such-run is not a run folder"),
        (
            downstream_planes,
            {"encoder.init": "no-such.safetensors"},
            {},
            r"The file no-such\.safetensors does not exist",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_invalid_run_is_refused_before_its_folder_is_made(task, fields, given, said, prepare_frames, tmp_path):
    data = prepare_frames(
        masks=given.get("masks", True), **{split: records(*who, **given) for split, who in SPLITS.items()}
    )
    defaults = {"task.head": ("brain",), "task.empty_frames": True}
    with pytest.raises(InputError, match=said) as caught:
        downstream.run(tiny(data, task, **defaults | fields), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_frames_without_a_structure_may_be_left_out(prepare_frames):
    data = prepare_frames(masks=True, **{split: records(*who) for split, who in SPLITS.items()})
    whole, shown = (
        downstream.set_up(tiny(data, **{"task.head": ("brain",), "task.empty_frames": empty})).task
        for empty in (True, False)
    )
    assert (whole.train.positions.size, whole.test.positions.size) == (12, 4)
    assert (shown.train.positions.size, shown.test.positions.size) == (6, 2)
    assert shown.train.part.reader.read_masks(shown.train.positions).any(axis=(1, 2)).all()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model.width_factor": 0.25}, r"width_factor 0.125 and not 0.25.*--config\.model\.width_factor=0\.125"),
        ({"model.arch": "resnet34"}, r"arch resnet18 and not resnet34"),
        ({"augment.mean": 0.449}, r"mean 0.17 and not 0.449.*--config\.augment\.mean=0\.17"),
        ({}, r"has no checkpoint"),
    ],
    ids=str,
)
def test_an_encoder_of_other_form_is_refused_with_both_named(fields, said, prepare_frames, tmp_path):
    open_run(tmp_path / "pretrained", config=to_dict(fine.get_config("tiny")), fingerprint="f00d")
    if fields:
        (tmp_path / "pretrained" / "checkpoints" / "5").mkdir(parents=True)
    data = prepare_frames(**{split: records(*who, masks=False) for split, who in SPLITS.items()})
    init = tmp_path / "pretrained" / "checkpoints" / "5" if fields else tmp_path / "pretrained"
    with pytest.raises(InputError, match=said) as caught:
        downstream.run(tiny(data, downstream_planes, **{"encoder.init": str(init)} | fields), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_downstream_run_is_refused_as_the_encoder(prepare_frames, tmp_path):
    data = prepare_frames(**{split: records(*who, masks=False) for split, who in SPLITS.items()})
    config = tiny(data, downstream_planes)
    open_run(tmp_path / "before", config=to_dict(config), fingerprint="f00d")
    (tmp_path / "before" / "checkpoints" / "5").mkdir(parents=True)
    config.encoder.init = str(tmp_path / "before" / "checkpoints" / "5")
    with pytest.raises(InputError, match=r"is a downstream run\. Set config.encoder.init to a pretraining run"):
        downstream.run(config, tmp_path / "run")


def test_training_starts_from_a_file_of_weights(prepare_frames, tmp_path):
    data = prepare_frames(**{split: records(*who, masks=False) for split, who in SPLITS.items()})
    config = tiny(data, downstream_planes, **{"model.width_factor": 0.0625})
    shapes = jax.eval_shape(
        lambda: make_resnet("resnet18", width_factor=0.0625).init(
            jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False
        )
    )
    rng = np.random.default_rng(0)
    given = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)
    save_torch_resnet(tmp_path / "encoder.safetensors", given, mean=config.augment.mean, std=config.augment.std)
    config.encoder.init = str(tmp_path / "encoder.safetensors")
    chex.assert_trees_all_equal(
        downstream.set_up(config).given, {name: {"encoder": tree} for name, tree in given.items()}
    )
    config.model.width_factor = 0.125
    with pytest.raises(InputError, match=r"encoder\.safetensors"):
        downstream.set_up(config)


@pytest.mark.slow
def test_training_starts_from_the_configured_encoder(prepare_frames, monkeypatch):
    data = prepare_frames(**{split: records(*who, masks=False) for split, who in SPLITS.items()})
    config = tiny(data, downstream_planes, **{"model.width_factor": 0.0625})
    random = downstream.begin_state(downstream.set_up(config), seed=0).wait()
    given = {
        name: jax.tree.map(lambda x: x + 1, getattr(random, name)["encoder"]) for name in ("params", "batch_stats")
    }
    initial = Initial({name: {"encoder": tree} for name, tree in given.items()}, "elsewhere")
    monkeypatch.setattr(downstream, "initial_variables", lambda config: initial)
    state = downstream.begin_state(downstream.set_up(config), seed=0).wait()
    chex.assert_trees_all_equal(state.params["encoder"], given["params"])
    chex.assert_trees_all_equal(state.batch_stats["encoder"], given["batch_stats"])
    chex.assert_trees_all_equal(state.params["head"], random.params["head"])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("changed", "alike"),
    [
        ({"encoder.init": "runs/other", "name": "other", "data.path": "other", "report.pictures": False}, True),
        ({"optim.learning_rate": 0.5}, False),
        ({"train.steps": 41}, False),
        ({"encoder.frozen": True}, False),
        ({"model.width_factor": 0.25}, False),
        ({"augment.flip": 0.0}, False),
        ({"seed": 1}, False),
    ],
    ids=str,
)
def test_runs_share_programs_where_nothing_in_them_differs(changed, alike):
    config, other = (downstream_planes.get_config("tiny") for _ in range(2))
    other.update_from_flattened_dict(changed)
    assert (downstream.make_programs(config, 6) is downstream.make_programs(other, 6)) == alike
    assert downstream.make_programs(config, 6) is not downstream.make_programs(config, 5)
