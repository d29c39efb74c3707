"""What a study runs, and what it makes of results that are written by hand."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from awcl_jax.config import downstream as downstream_config
from awcl_jax.config.fields import to_dict
from awcl_jax.config.pretraining import validate
from awcl_jax.reproduce import command as reproduce
from awcl_jax.reproduce import presets, study
from awcl_jax.reproduce import tables as study_tables
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.run_folder import FREE_ON_RESUME, changed_fields
from tests.helpers.frames import frame_record
from tests.helpers.study import fake_runs

PATHS = {name: f"data/{name}" for name in ("fetal_planes_db", "hc18", "usgra")}


PRESETS = {
    "phantom-small": presets.phantom_small,
    "public": lambda: presets.public(PATHS | {"pocus_lung": "data/pocus_lung"}, imagenet="resnet50.safetensors"),
    "public-long": lambda: presets.public_long(PATHS),
    "public-weights": lambda: presets.public_weights(PATHS, imagenet="resnet50.safetensors"),
}


OUT = Path("a-study")


@pytest.fixture(scope="module", params=PRESETS)
def preset(request):
    return PRESETS[request.param]()


@pytest.fixture(scope="module")
def planned(preset):
    """Its runs."""
    return list(study.runs(preset, OUT))


def test_every_preset_is_tested():
    assert tuple(PRESETS) == reproduce.PRESETS


def test_every_run_is_valid_and_finds_what_it_builds_on(preset, planned):
    done = set()
    for run in planned:
        if run.kind == study.PRETRAIN:
            validate(run.config)
        else:
            downstream_config.validate(run.config)
            init = run.config.encoder.init
            assert init in {"random", "resnet50.safetensors"} or init in done
            if run.learning_rate is not None:
                assert run.config.seed != preset.seeds[0] or run.folder.endswith("-repeat1")
        assert str(OUT / run.folder) not in done
        done.add(str(OUT / run.folder))
        assert run.work > 0
    methods = [*preset.methods, *map(study.ratio_method, preset.ratios)]
    pretrained = sum(method.config is not None for method in (*methods, *preset.variations)) * len(preset.seeds)
    first, others = max(1, len(preset.learning_rates)), len(preset.seeds) - 1
    repeated = sum((method.config is not None) + len(preset.tasks) for method in preset.methods) * preset.repeats
    assert len(done) == pretrained + len(methods) * len(preset.tasks) * (first + others) + repeated


def test_pictures_are_drawn_of_the_seed_whose_pictures_are_shown(preset):
    preset = dataclasses.replace(preset, seeds=(3, 4))
    drawn = [run for run in study.runs(preset, OUT) if run.config.report.pictures]
    assert {run.config.seed for run in drawn} == {3}
    assert any(run.kind == study.DOWNSTREAM for run in drawn)


def test_methods_differ_only_in_what_makes_the_method(preset, planned):
    configs = {
        run.folder.partition("/")[2]: to_dict(run.config)
        for run in planned
        if run.kind == study.PRETRAIN and run.folder.endswith("-0")
    }
    allowed = {
        "fine-0": set(),
        "scan-0": {"positives"},
        "simclr-0": {"positives", "sampler.mode"},
        "moco-0": {"positives", "sampler.mode", "queue.size"},
        "coarse-0": {"granularity"},
        "both-0": {"granularity"},
    }
    imagenet = {"model.init", "model.arch", "model.strides", "model.width_factor", "augment.mean", "augment.std"}
    variations = {method.name: method for method in preset.variations}
    started = "fine-0" not in configs  # then all methods start from weights
    plain = configs["imagenet-fine-0" if started else "fine-0"]
    for name, config in configs.items():
        changed = changed_fields(plain, config)
        fields = {change.split()[0] for change in changed} - {"name"}
        if method := variations.get(name.removesuffix("-0")):
            # What other data changes is the fingerprint.
            expected = {*method.fields} - {*FREE_ON_RESUME} | allowed.get(f"{method.config}-0", set())
        else:
            from_nothing = name.removeprefix("imagenet-")
            expected = allowed.get(from_nothing, {"anatomy_ratio"})
            expected = expected | (imagenet if name != from_nothing and not started else set())
        assert fields == expected


def test_a_repeat_differs_in_rounding_alone():
    plan = dataclasses.replace(presets.public(PATHS, imagenet="resnet50.safetensors"), ratios=())
    runs = {run.folder: to_dict(run.config) for run in study.runs(plan, OUT)}
    repeats = [folder for folder in runs if folder.endswith("-repeat1")]
    assert len(repeats) == sum((method.config is not None) + len(plan.tasks) for method in plan.methods)
    for folder in repeats:
        plain = folder.removesuffix("-repeat1")
        plain = plain if plain in runs else f"{plain}-lr{plan.learning_rates[0]:g}"
        one, other = runs[plain], runs[folder]
        fields = {change.split()[0] for change in changed_fields(one, other)}
        assert {"augment.std"} <= fields <= {"augment.std", "encoder.init", "optim.learning_rate", "report.pictures"}
        stds = np.float32([run["augment"]["std"] for run in (one, other)])
        assert 0 < stds[1] - stds[0] <= 8 * np.spacing(stds[0])
        if "encoder.init" in fields:
            assert other["encoder"]["init"] == one["encoder"]["init"] + "-repeat1"


def test_what_no_task_needs_is_pretrained_on_without_labels():
    fields = presets.public(PATHS | {"pocus_lung": "data/pocus_lung"}).pretraining
    assert set(fields["data.unlabelled"]) == {"data/hc18", "data/pocus_lung"}


def test_the_rate_is_chosen_on_validation_with_the_first_seed(tmp_path):
    plan = dataclasses.replace(SMALL, ratios=(), learning_rates=(0.1, 0.2, 0.3))
    runs = {run.folder: run for run in study.runs(plan, tmp_path)}
    assert runs["planes/fine-0-lr0.2"].final_config().optim.learning_rate == 0.2
    assert "planes/fine-0" not in runs
    later = runs["planes/fine-1"]
    assert plan.task_folder(tmp_path, PLANES, FINE, 0) is None
    # The best on validation patients is not the best on test patients.
    for rate, validation, test in ((0.1, 0.5, 0.9), (0.2, 0.7, 0.1), (0.3, 0.6, 0.5)):
        assert plan.chosen_rate(tmp_path, PLANES, FINE) is None
        content = {"validation": {"val/macro_f1": validation}, "test": {"macro_f1": {"value": test}}}
        results(tmp_path / f"planes/fine-0-lr{rate}/results.json", content)
    assert later.final_config().optim.learning_rate == 0.2
    results(tmp_path / "planes/fine-1/results.json", {"test": {"macro_f1": {"value": 0.3}}})
    study_tables.write(plan, tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert cells(text, "Transfer")["AWCL, fine"][2] == "0.200 ± 0.141"
    assert cells(text, "Learning rate")["AWCL, fine"] == ["0.2", "—"]
    assert cells(text, "Learning rate")["SimCLR"] == ["—", "—"]


def test_a_dataset_that_is_missing_is_named():
    some = {"fetal_planes_db": "data/fpdb"}
    with pytest.raises(InputError, match=r"--preset=public-long .* --data=hc18=DIR --data=usgra=DIR; "):
        presets.require_datasets(presets.public_long(some), some)


def test_datasets_that_nothing_uses_are_not_asked_for():
    some = {"fetal_planes_db": "data/fpdb"}
    presets.require_datasets(dataclasses.replace(presets.public_long(some), tasks=()), some)
    with pytest.raises(InputError, match="Add --data=hc18=DIR; "):  # used without labels
        presets.require_datasets(dataclasses.replace(presets.public(some), tasks=()), some)


# Tables ---------------------------------------------------------------------------------------------------------------

RANDOM, SIMCLR, FINE = (method for method in presets.METHODS if method.name in ("random", "simclr", "fine"))
PLANES = study.Task("planes", "I", "downstream_planes", "", {}, {"macro_f1": "macro-F1"})
HEADS = study.Task("heads", "II", "downstream_segmentation", "", {}, {"dice/mean": "Dice", "hc/mae_mm": "HC error"})
SMALL = study.Study("small", "", {}, (RANDOM, SIMCLR, FINE), (PLANES, HEADS), (0.5,), (0, 1))


def results(file, content):
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content))


@pytest.fixture
def out(tmp_path):
    """Two seeds of all but the ratio's runs; the second seed of fine AWCL on heads is not finished."""
    for method, base in (("random", 0.2), ("simclr", 0.4), ("fine", 0.6)):
        for seed in (0, 1):
            value = {"value": base + 0.1 * seed}
            if method != "random":
                scores = {"trained": {"knn/macro_f1": value, "probe/macro_f1": value}}
                scores["untrained"] = {"knn/macro_f1": {"value": 0.1 * seed}, "probe/macro_f1": {"value": 0.1}}
                results(tmp_path / f"pretrain/{method}-{seed}/results.json", scores)
            planes = tmp_path / f"planes/{method}-{seed}"
            results(planes / "results.json", {"test": {"macro_f1": value}})
            right = {"random": 0, "simclr": 2, "fine": 4}[method]
            with (planes / "test_frames.csv").open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["frame", "patient", "label", "prediction"])
                for i in range(4):
                    label = "ab"[i % 2]
                    table.writerow([i, f"p{i}", label, label if i < right else "ba"[i % 2]])
            if (method, seed) != ("fine", 1):
                results(tmp_path / f"heads/{method}-{seed}/results.json", {"test": {"dice/mean": value}})
                with (tmp_path / f"heads/{method}-{seed}/test_frames.csv").open("w", newline="") as file:
                    table = csv.writer(file)
                    table.writerow(["frame", "patient", "dice/head"])
                    table.writerows([[0, "p0", base], [1, "p1", base + 0.1], [2, "p1", ""]])
    return tmp_path


def cells(text: str, title: str) -> dict[str, list[str]]:
    """Rows of a table by their first cell."""
    lines = text.partition(f"### {title}\n")[2].partition("###")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_the_transfer_table_by_hand(out):
    study_tables.write(SMALL, out)
    text = (out / "tables.md").read_text()
    table = cells(text, "Transfer")
    assert table["encoder"] == ["kNN macro-F1", "linear probe macro-F1", "I: macro-F1", "II: Dice"]
    assert table["random init"] == ["0.050 ± 0.071", "0.100 ± 0.000", "0.250 ± 0.071", "0.250 ± 0.071"]
    assert table["SimCLR"][2] == "0.450 ± 0.071"
    assert table["AWCL, fine"][2:4] == ["0.650 ± 0.071", "0.600"], "one seed has no spread"
    assert cells(text, "II")["encoder"] == ["Dice", "HC error"]
    assert cells(text, "II")["SimCLR"] == ["0.450 ± 0.071", "—"]
    assert "### Anatomy ratio\n" in text


def test_one_seed_is_told_with_its_interval_over_patients(out):
    score = {"value": 0.5, "low": 0.4, "high": 0.61}
    results(out / "heads/fine-50-0/results.json", {"test": {"dice/mean": score, "hc/mae_mm": {"value": 7.0}}})
    plan = dataclasses.replace(SMALL, methods=(study.ratio_method(0.5),), ratios=(), seeds=(0,))
    study_tables.write(plan, out)
    text = (out / "tables.md").read_text()
    assert cells(text, "II")["AWCL, fine, 50% of labels"] == ["0.500 (0.400 to 0.610)", "7.000"]
    assert "with the 95% interval of a bootstrap over them; seed 0" in text


def test_differences_are_paired_by_frame(out):
    study_tables.write(SMALL, out)
    text = (out / "tables.md").read_text()
    planes = cells(text, "I: difference in macro-F1")
    # All four frames right against none right: 1 - 0, whichever patients are drawn.
    assert planes["AWCL, fine"][0] == "+1.000 (+1.000 to +1.000)"
    assert planes["SimCLR"][1] == ""
    assert planes["SimCLR"][2].startswith("-0.5")
    heads = cells(text, "II: difference in Dice")
    # Frames that both methods have: one seed, each 0.2 better.
    assert heads["AWCL, fine"][1] == "+0.200 (+0.200 to +0.200)"


def test_differences_of_frozen_features_are_paired_by_frame_too(out):
    # Of four frames of as many patients SimCLR has the first two right with either seed, and fine AWCL three and four.
    for method, right in (("simclr", (2, 2)), ("fine", (3, 4))):
        for seed in (0, 1):
            with (out / f"pretrain/{method}-{seed}/test_frames.csv").open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["frame", "patient", "label", "prediction"])
                for i in range(4):
                    label = "aabb"[i]
                    table.writerow([i, f"p{i}", label, label if i < right[seed] else "bbaa"[i]])
    study_tables.write(SMALL, out)
    rows = cells((out / "tables.md").read_text(), "Frozen features: difference in kNN macro-F1")
    # Macro-F1 by hand: two right, of a, and b taken for a: F1 of a 2/3, of b 0, mean 1/3. Three right: 4/5 and 2/3,
    # mean 11/15. Four: 1. So fine leads by the mean of 2/5 and 2/3.
    assert rows["AWCL, fine"][1].startswith("+0.533 (")
    assert rows["SimCLR"][2].startswith("-0.533 (")
    assert rows["random init"] == ["", "", ""], "nothing was pretrained"
    record = json.loads((out / "study.json").read_text())["differences"]["frozen"]
    assert (record["score"], len(record["of"])) == ("knn/macro_f1", 2)


def test_a_study_whose_runs_have_no_frames_has_no_such_table(out):
    study_tables.write(SMALL, out)
    assert "Frozen features" not in (out / "tables.md").read_text()


def test_what_moves_without_a_reason_is_not_called_a_difference(out):
    plan = dataclasses.replace(SMALL, methods=(SIMCLR, FINE), tasks=(PLANES,), ratios=(), repeats=2)
    study_tables.write(plan, out)
    text = (out / "tables.md").read_text()
    assert "how much scores move without any reason is not known" in text
    assert "No run was repeated (`--repeats`)" in text
    assert "**" not in text
    # The first seed's score and those of its repeats: 0.4, 0.4, 0.1 and 0.6, 0.6, 0.6. Within SimCLR's the squares of
    # the deviations sum up to 0.06, of four degrees of freedom: the deviation is 0.122.
    for method, values in (("simclr", (0.4, 0.1)), ("fine", (0.6, 0.6))):
        for repeat, value in enumerate(values, 1):
            score = {"value": value}
            results(out / f"planes/{method}-0-repeat{repeat}/results.json", {"test": {"macro_f1": score}})
    study_tables.write(plan, out)
    text = (out / "tables.md").read_text()
    assert "Standard deviation between runs with the same seed and another rounding: I: macro-F1 0.122." in text
    assert "Comparisons: 1," in text
    record = json.loads((out / "study.json").read_text())
    (difference, turned) = record["differences"]["planes"]["of"]
    assert difference["value"] == -turned["value"]
    assert difference["counts"] == (difference["high"] < 0)
    assert abs(difference["value"]) > 0.25
    assert record["noise"]["frozen"] == {"knn/macro_f1": None, "probe/macro_f1": None}
    assert record["noise"]["planes"]["macro_f1"] == pytest.approx(0.06**0.5 / 2)
    assert len([run for run in record["runs"] if run["repeat"]]) == 4
    # As large as the noise: no difference any more.
    score = {"value": 1.4}
    (out / "planes/simclr-0-repeat2/results.json").write_text(json.dumps({"test": {"macro_f1": score}}))
    study_tables.write(plan, out)
    assert "**" not in (out / "tables.md").read_text()


def test_probes_without_pretraining_are_those_of_its_start(out):
    encoder = {"model.arch": "resnet50"}
    imagenet = study.Method("imagenet", "ImageNet", None, init="w.pth", encoder=encoder)
    drawn = study.Method("random-50", "random init (ResNet-50)", None, encoder=encoder)
    on = study.Method("imagenet-fine", "AWCL from ImageNet", "fine", {"model.init": "w.pth"}, encoder=encoder)
    plan = dataclasses.replace(SMALL, methods=(*SMALL.methods, imagenet, drawn, on))
    for seed in (0, 1):
        scores = {"knn/macro_f1": {"value": 0.7}, "probe/macro_f1": {"value": 0.8}}
        results(out / f"pretrain/imagenet-fine-{seed}/results.json", {"untrained": scores, "trained": scores})
    study_tables.write(plan, out)
    text = (out / "tables.md").read_text()
    table = cells(text, "Transfer")
    assert table["ImageNet"][:3] == ["0.700 ± 0.000", "0.800 ± 0.000", "—"]
    assert table["random init (ResNet-50)"][:2] == ["—", "—"], "nothing starts from it"
    assert table["random init"][0] == "0.050 ± 0.071"
    assert "AWCL from ImageNet: model.arch=resnet50." in text


def test_variations_are_probed_beside_what_they_vary(out):
    warm = study.Method("fine-warm", "temperature 0.5", "fine", {"loss.temperature": 0.5})
    scores = {"knn/macro_f1": {"value": 0.3}, "probe/macro_f1": {"value": 0.2}}
    results(out / "pretrain/fine-warm-0/results.json", {"trained": scores})
    (out / "pretrain/fine-warm-0/embeddings.png").touch()
    study_tables.write(dataclasses.replace(SMALL, variations=(warm,)), out)
    text = (out / "tables.md").read_text()
    table = cells(text, "What else matters")
    assert table["temperature 0.5"] == ["0.300", "0.200"]
    assert table["AWCL, fine"] == ["0.650 ± 0.071", "0.650 ± 0.071"]
    assert "- temperature 0.5: [map of embeddings](pretrain/fine-warm-0/embeddings.png)" in text


def test_the_curve_has_what_is_there(out):
    study_tables.write(SMALL, out)
    table = cells((out / "tables.md").read_text(), "Anatomy ratio")
    assert table["0"][0] == "0.450 ± 0.071"
    assert table["0.5"] == ["—"] * 4
    assert (out / "anatomy_ratio.png").read_bytes().startswith(b"\x89PNG")


def test_learning_curves_have_the_seeds_that_are_finished(out):
    study_tables.write(SMALL, out)
    assert not (out / "learning_curves.png").exists()
    for seed, values in ((0, (0.2, 0.5)), (1, (0.4, 0.7))):
        lines = [{"step": step, "val/knn/macro_f1": value} for step, value in zip((10, 20), values, strict=True)]
        lines.insert(1, {"step": 15, "loss": 3.0})
        (out / f"pretrain/fine-{seed}/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    unfinished = out / "pretrain/coarse-0/metrics.jsonl"
    unfinished.parent.mkdir()
    unfinished.write_text('{"step": 10, "val/knn/macro_f1": 0.1}\n')
    study_tables.write(SMALL, out)
    assert (out / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    curves = json.loads((out / "study.json").read_text())["learning_curves"]
    assert curves == {
        "random": {},
        "simclr": {},
        "fine": {"0": [[10, 0.2], [20, 0.5]], "1": [[10, 0.4], [20, 0.7]]},
    }


# The command ----------------------------------------------------------------------------------------------------------


def fake(monkeypatch, *, dies_at: str | None = None):
    monkeypatch.setattr(study_tables, "write", lambda plan, out: (out / study_tables.TABLES_FILE).write_text("tables"))
    return fake_runs(monkeypatch, dies_at=dies_at)


def test_what_is_finished_is_skipped_and_runs_speak_into_a_log(tmp_path, monkeypatch, capsys):
    out = tmp_path / "study"
    taken = fake(monkeypatch, dies_at="heart/random-0")
    with pytest.raises(SystemExit) as left:
        reproduce.main([f"--out={out}", "--methods=random,fine"])
    assert left.value.code == 130
    assert taken == ["planes/random-0", "planes-10/random-0", "fetal/random-0"]
    taken = fake(monkeypatch)
    reproduce.main([f"--out={out}", "--methods=random,fine"])
    assert taken == [
        "heart/random-0",
        *("pretrain/fine-0", "planes/fine-0", "planes-10/fine-0", "fetal/fine-0", "heart/fine-0"),
    ]
    said = capsys.readouterr()
    assert "9 runs, 3 of them finished" in said.out
    assert "said by the run" not in said.out
    assert (out / "logs" / "pretrain-fine-0.txt").read_text() == "said by the run\n"


def test_chosen_tasks_alone_are_run(tmp_path, monkeypatch):
    taken = fake(monkeypatch)
    reproduce.main([f"--out={tmp_path / 'study'}", "--methods=fine", "--tasks=heart,planes"])
    assert taken == ["pretrain/fine-0", "heart/fine-0", "planes/fine-0"]
    taken = fake(monkeypatch)
    reproduce.main([f"--out={tmp_path / 'study'}", "--methods=random,scan", "--tasks="])
    assert taken == ["pretrain/scan-0"]


def test_tables_alone_run_nothing(out, monkeypatch, capsys):
    taken = fake(monkeypatch)
    reproduce.main([f"--out={out}", "--methods=random,fine", "--only_tables"])
    assert taken == []
    assert (out / study_tables.TABLES_FILE).read_text() == "tables"


@pytest.mark.quick
def test_tables_of_no_study_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        reproduce.main([f"--out={tmp_path / 'study'}", "--only_tables"])
    assert left.value.code == 1
    assert "--only_tables needs a study there" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods=fine,byol"], "Unknown --methods byol; known: random, scan"),
        (["--tasks=lung"], "Unknown --tasks lung; known: planes, planes-10"),
        (["--variations=fine-cold"], "Unknown --variations fine-cold; known: none"),
        (["--preset=public"], "--data=fetal_planes_db=DIR"),
        (["--data=hc18"], "--data must be NAME=DIR; got 'hc18'"),
        (["--ratios=0.5,2"], "got '2'"),
        (["--ratios=half"], "got 'half'"),
        (["--data=phantom=DIR"], "--data needs --preset=public"),
        (["--preset=public-long"], "--preset=public-long needs prepared datasets. Add --data=fetal_planes_db=DIR"),
        (["--preset=public-weights"], "--preset=public-weights needs --imagenet=FILE"),
        (["--preset=public-long", "--imagenet=w.pth"], "--imagenet needs --preset=public or public-weights, because"),
        (["--only_tables"], "has no run of this study"),
        (["--imagenet="], "--imagenet must not be empty"),
        (
            ["--preset=public", *(f"--data={name}=no" for name in PATHS), "--imagenet=/dev/null"],
            "--imagenet must be a file with the weights of a ResNet-50; /dev/null is not a file",
        ),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        reproduce.main([f"--out={tmp_path}", *arguments])
    assert left.value.code == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_dataset_that_only_the_last_task_needs_is_looked_for_before_the_first_run(tmp_path, prepare_frames, capsys):
    frames = prepare_frames(train=[frame_record("a", "a")])
    data = [f"--data={name}={frames if name != 'usgra' else tmp_path / 'gone'}" for name in PATHS]
    with pytest.raises(SystemExit) as left:
        reproduce.main([f"--out={tmp_path / 'study'}", "--preset=public", *data])
    assert left.value.code == 1
    assert f"There is no folder {tmp_path / 'gone'}" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("seeds", ["0", "10001", "\N{SUPERSCRIPT TWO}"])
def test_as_many_seeds_as_nobody_runs_are_refused(seeds, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        reproduce.main([f"--out={tmp_path}", f"--seeds={seeds}"])
    assert left.value.code == 2
    assert "must be a whole number from 1 to 10,000" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_study_from_end_to_end(tmp_path):
    tiny = {"train.steps": 6, "train.validate_every": 3, "optim.warmup_steps": 1}
    plan = study.Study(
        name="tiny",
        variant="tiny",
        pretraining={"train.steps": 6, "train.eval_every": 6, "train.checkpoint_every": 6, "optim.warmup_steps": 1}
        | {"report.pictures": False},
        methods=(RANDOM, FINE),
        tasks=(dataclasses.replace(HEADS, variant="tiny", fields=tiny, config="downstream_segmentation"),),
        ratios=(),
        seeds=(0,),
    )
    reproduce.run_all(list(study.runs(plan, tmp_path)), tmp_path)
    study_tables.write(plan, tmp_path)
    text = (tmp_path / "tables.md").read_text()
    for row in list(cells(text, "Transfer").values())[2:]:
        for cell in row[:3]:
            assert 0 <= float(cell.split()[0]) <= 1
    assert cells(text, "II: difference in Dice")["AWCL, fine"][0].startswith(("+", "-"))
