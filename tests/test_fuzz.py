"""Malformed input in numbers: it works, or is refused in one line, and leaves nothing half written."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
from absl import flags
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from awcl_jax.config import build
from awcl_jax.config.downstream import default_downstream_config
from awcl_jax.config.downstream import validate as validate_downstream
from awcl_jax.config.fields import from_dict, to_dict
from awcl_jax.config.file import define_config, parse_flags, read_config
from awcl_jax.config.pretraining import default_config, validate
from awcl_jax.data.sampler import BatchPlan
from awcl_jax.report import payload, tables, writing
from awcl_jax.report.contents import read_run
from awcl_jax.reproduce.presets import METHODS, phantom_small
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import run_folder
from awcl_jax.train.bad_steps import BadSteps
from awcl_jax.train.metrics import MetricsWriter, read_metrics
from tests.helpers.malformed import (
    VALUES,
    broken_bytes,
    broken_trees,
    files_in,
    paths,
    refused_of,
    refuses,
    replaced,
    sampled,
)
from tests.helpers.report_runs import make_run

FEW = settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=2_000)

TEXTS = st.text(st.characters(), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
DEFAULTS = {"pretraining": (default_config, validate), "downstream": (default_downstream_config, validate_downstream)}


# Configurations ------------------------------------------------------------------------------------------------------


def take_config(values, default, check):
    """As a run takes it: read, checked, and made into a model and an optimiser where it is sound."""
    config = from_dict(values, default())
    check(config)
    build.make_encoder(config)
    build.make_optimiser(config)


@pytest.mark.parametrize("every", [9, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", DEFAULTS)
def test_configurations(kind, every):
    default, check = DEFAULTS[kind]
    tree = to_dict(default())
    # What both have is tried once.
    fields = [path for path in paths(tree) if kind == "pretraining" or path[0] in ("task", "encoder", "train", "model")]
    cases = ((f"{path} = {value!r:.40}", replaced(tree, path, value)) for path in fields for value in VALUES)
    refused = refused_of(sampled(cases, every), lambda values: take_config(values, default, check))
    assert len(refused) > (2400 if kind == "pretraining" else 600) / every


@pytest.mark.parametrize(
    "values",
    [
        {"augment": {"attenuation": ["x"]}},
        {"augment": {"crop_aspect": []}},
        {"model": {"width_factor": 1e308}},
        {"seed": 2**31},
        {"train": {"steps": 2**31}},
        {"name": "../x"},
        {"data": {"path": "\0"}},
    ],
    ids=str,
)
def test_configurations_that_got_through_once(values):
    assert refuses(lambda: take_config(values, default_config, validate))


def test_a_message_is_one_line_whatever_it_quotes(tmp_path):
    # As a stranger's run may have it; \x1b would be obeyed by a terminal.
    config = to_dict(default_config())
    run_folder.write_json(tmp_path / "config.json", {"config": config | {"name": "a\nb\x1b[2J\ud800"}, "data": "f00d"})
    with pytest.raises(InputError, match=r"name \(a b\\x1b\[2J\\ud800 -> fine\)"):
        run_folder.open_run(tmp_path, config=config, fingerprint="f00d")


@pytest.mark.parametrize("every", [21, pytest.param(7, marks=pytest.mark.slow)])
def test_values_that_python_sets(every):
    # A Python file may set what a ConfigDict lets through: None for anything, other kinds where it says so.
    default = default_config()
    fields = [path for path in paths(to_dict(default)) if path[0] != "augment"]

    def take(case):
        path, value = case
        config = default_config()
        with config.ignore_type():
            config.update_from_flattened_dict({".".join(map(str, path)): value})
        validate(config)

    cases = ((f"{path} = {value!r:.40}", (path, value)) for path in fields for value in VALUES)
    # A dict there is a group of fields, and of a number beyond all floats ConfigDict itself says that it is one.
    cases = (case for case in cases if not isinstance(case[1][1], dict) and case[1][1] != 10**400)
    cases = (case for case in cases if not isinstance(case[1][0][-1], int))
    assert len(refused_of(sampled(cases, every), take)) > 1400 / every


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_configurations_of_any_form(many, tmp_path):
    names = sorted({str(key) for path in paths(to_dict(default_config())) for key in path})

    @(MANY if many else FEW)
    @given(st.dictionaries(st.sampled_from(names) | TEXTS, JSON, max_size=4))
    @example({"train.steps": 5})
    @example({"task": None})
    @example({"config": {"config": {}}, "data": 1})
    def take(values):
        (tmp_path / "given.json").write_text(json.dumps(values))
        refuses(lambda: (validate_downstream if "task" in values else validate)(read_config(tmp_path / "given.json")))

    take()


def command_line(*arguments):
    values, argv = flags.FlagValues(), ["awcl_jax.main", *arguments]
    holder = define_config(values, sys_argv=argv)
    parse_flags(argv, values)
    if holder.value is not None:
        validate(holder.value)


SLIPS = (
    *("--config", "--config=", "--config=x", "--config=.json", "--config=/", "--config=:", "--config=:x.json"),
    *("--config.", "--config.=1", "--config.train", "--config.train=1", "--config.train={}", "--config.train.steps"),
    *("--config.train.steps=", "--config.train.steps=x", "--config.train.steps=1e3", "--config.train.steps.x=1"),
    *("--config.train.steps=None", "--config.train[steps]=1", "--config['train']=1", "--config.train..steps=1"),
    *("--config.a-b=1", "--config.1=1", "--config.__class__=1", "--config.lock=1", "--config.train.__init__=1"),
    *("--config.augment.blur=1", "--config.augment.blur=(", "--config.augment.blur=(1,)", "--config.augment.blur=x"),
    *("--config.augment.blur=None", "--config.eval.anatomies=x", "--config.eval.anatomies=(1,)", "--noconfig.seed"),
    *("--config.data.unlabelled=[[1]]", "--config.optim.decay_all=maybe", "--config.name=a\nb", "--config.name=\0"),
    *("--config.seed=-1", "--config.seed=4294967296", "--config.optim.clip_norm=nan", "--config.loss.block_size=x"),
    *("--config.train()=1", "--config.train.steps==", "--config.train:steps=1", "--config.\n=1", "--x", "--", "-"),
)


@pytest.mark.parametrize("before", [True, False])
def test_slips_on_the_command_line(before, tmp_path):
    (tmp_path / "given.json").write_text("{}")
    flag = f"--config={tmp_path / 'given.json'}"
    cases = ((slip, (flag, slip) if before else (slip, flag)) for slip in SLIPS)
    assert len(refused_of(cases, lambda arguments: command_line(*arguments))) > 30


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_any_field_on_the_command_line(many, tmp_path):
    (tmp_path / "given.json").write_text("{}")
    fields = [".".join(map(str, path)) for path in paths(to_dict(default_config()))]

    @(MANY if many else FEW)
    @given(st.sampled_from(fields) | TEXTS, st.sampled_from(VALUES).map(str) | TEXTS)
    def take(field, value):
        refuses(lambda: command_line(f"--config={tmp_path / 'given.json'}", f"--config.{field}={value}"))

    take()


# The folder of a run -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that has ended."""
    return make_run(tmp_path_factory.mktemp("runs") / "run")


def tell(folder):
    """All that the page tells, without writing it."""
    told = read_run(folder)
    tables.score_table([told])
    parts = (tables.facts(told), tables.frame_counts(told), tables.confusion(told), tables.composition(told))
    drawn = (payload.panels([told]), None if told.frames is None else payload.frame_map(told.frames))
    json.dumps((list(tables.settings([told])), drawn), allow_nan=False)
    return parts


def tell_with(folder, file, content):
    """The same with another file in the run's place, which is put back."""
    before = (folder / file).read_bytes()
    (folder / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    try:
        return tell(folder)
    finally:
        (folder / file).write_bytes(before)


@pytest.mark.parametrize(("file", "every", "wanted"), [("config.json", 97, 8), ("results.json", 11, 100)])
def test_files_of_a_run(file, every, wanted, run):
    content = json.loads((run / file).read_text())
    cases = itertools.chain(sampled(broken_trees(content), every), broken_bytes((run / file).read_bytes()))
    held = files_in(run)
    assert len(refused_of(cases, lambda given: tell_with(run, file, given))) > wanted
    assert files_in(run) == held


def test_metrics_of_a_run(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    broken = sampled(broken_trees(lines[:2]), 3)
    trees = ((kind, b"".join(json.dumps(line).encode() + b"\n" for line in tree)) for kind, tree in broken)
    cases = itertools.chain(trees, broken_bytes((run / "metrics.jsonl").read_bytes()))
    assert len(refused_of(cases, lambda given: tell_with(run, "metrics.jsonl", given))) > 60


def test_metrics_that_a_run_goes_on_from(tmp_path):
    def go_on(content):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "metrics.jsonl").write_bytes(content)
        try:
            MetricsWriter(tmp_path / "run", start_step=1).close()
            read_metrics(tmp_path / "run" / "metrics.jsonl")
        except InputError:
            assert files_in(tmp_path / "run") == {"metrics.jsonl": content}  # as it was
            raise

    good = b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": "nan"}\n'
    assert len(refused_of(broken_bytes(good), go_on)) > 8


def test_bad_steps(tmp_path):
    line = {"step": 7, "loss": "nan", "gradient_norm": "inf", "frames": ["a", "b"]}
    good = json.dumps(line).encode() + b"\n"
    trees = ((kind, json.dumps(tree).encode() + b"\n") for kind, tree in broken_trees(line))
    values = ((repr(value)[:40], json.dumps(value).encode() + b"\n") for value in VALUES)

    def open_file(content):
        (tmp_path / "bad_steps.jsonl").write_bytes(content)
        try:
            assert BadSteps(tmp_path, start_step=7).in_a_row <= 1
        except InputError:
            assert files_in(tmp_path) == {"bad_steps.jsonl": content}
            raise

    assert len(refused_of(itertools.chain(trees, values, broken_bytes(good)), open_file)) > 60


def test_what_a_run_belongs_to(tmp_path):
    config = to_dict(default_config())
    content = {"config": config, "data": "f00d"}

    def claim(given):
        (tmp_path / "config.json").write_bytes(given if isinstance(given, bytes) else json.dumps(given).encode())
        held = files_in(tmp_path)
        try:
            run_folder.open_run(tmp_path, config=config, fingerprint="f00d")
        finally:
            assert files_in(tmp_path) == held

    cases = itertools.chain(sampled(broken_trees(content), 31), broken_bytes(json.dumps(content).encode()))
    assert len(refused_of(cases, claim)) > 80


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_results_of_any_form(many, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    names = list(json.loads((run / "results.json").read_text()))

    @settings(MANY if many else FEW, max_examples=200 if many else 8)
    @given(st.dictionaries(st.sampled_from([*names, "chosen_step", "test", "peak_memory_mb"]) | TEXTS, JSON))
    def write(results):
        (tmp_path / "run" / "results.json").write_text(json.dumps(results))
        (tmp_path / "run" / "report.html").unlink(missing_ok=True)
        held = files_in(tmp_path / "run")
        if refuses(lambda: writing.write_page([tmp_path / "run"], tmp_path / "run" / "report.html")):
            assert files_in(tmp_path / "run") == held

    write()


def test_results_that_a_study_chooses_by(tmp_path):
    study = dataclasses.replace(phantom_small(), learning_rates=(1e-3,))
    (folder,) = study.tried(study.tasks[0], METHODS[0]).values()
    (tmp_path / folder).mkdir(parents=True)

    def choose(content):
        (tmp_path / folder / "results.json").write_text(json.dumps(content))
        assert study.chosen_rate(tmp_path, study.tasks[0], METHODS[0]) == 1e-3

    assert len(refused_of(broken_trees({"validation": {"val/macro_f1": 0.5}}), choose)) > 60


# Batches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_batches(many):
    numbers = st.integers(-2, 12)
    frames = st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 5)), max_size=40)

    @settings(MANY if many else FEW, max_examples=5_000 if many else 300)
    @given(
        frames,
        st.fixed_dictionaries(
            {
                "batch_size": numbers,
                "seed": st.integers(0, 2**32),
                "mode": st.sampled_from(("balanced", "natural", "x")),
            },
            optional={
                "anatomies": st.none() | numbers,
                "units_per_class": numbers,
                "unlabelled_share": st.floats() | st.floats(0, 1),
                "pairs": st.sampled_from(("frame", "cross_scan", "")),
            },
        ),
        st.integers(0, 2**40),
    )
    def compose(frames, settings, step):
        classes, units = (np.array([frame[i] for frame in frames], np.int64) for i in range(2))

        def use():
            plan = BatchPlan(classes, units, **settings)
            # A class's scans are of this class alone where scans are classes' own; here a scan may show several.
            rows, partners = plan.frames(step), plan.partners(step)
            assert rows.shape == partners.shape == (settings["batch_size"],)
            assert len(set(rows.tolist())) == len(rows)
            assert 0 <= rows.min() <= rows.max() < len(frames)
            np.testing.assert_array_equal(classes[rows], classes[partners])

        refuses(use)

    compose()


def test_no_kind_is_counted_twice():
    assert len({f"{value!r:.40}" for value in VALUES}) == len(VALUES)
