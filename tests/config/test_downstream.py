"""Configurations of downstream runs: every file and variant, and every rule."""

import pytest

from awcl_jax.config.downstream import default_downstream_config, validate
from awcl_jax.config.fields import to_dict
from awcl_jax.config.pretraining import default_config
from awcl_jax.ingest.prepare import BUILDERS
from awcl_jax.runtime.errors import InputError
from tests.helpers.configurations import CONFIGS, command_line, load

pytestmark = pytest.mark.quick

VARIANTS = {
    "downstream_planes": ("", "tiny", "fetal_planes_db"),
    "downstream_segmentation": (
        "",
        "tiny",
        "hc18",
        "heart",
        "fetal_head_biometry",
        "usgra",
        "camus",
        "echonet_dynamic",
        "busi",
    ),
}


@pytest.fixture(autouse=True)
def configs_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS.parent)


def changed(**fields):
    config = default_downstream_config()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


@pytest.mark.parametrize(("name", "variant"), [(name, v) for name, variants in VARIANTS.items() for v in variants])
def test_every_configuration_loads_and_is_valid(name, variant):
    config = load(CONFIGS / f"{name}.py", variant)
    validate(config)
    assert config.name == name
    assert to_dict(config).keys() == to_dict(default_downstream_config()).keys()
    assert config.data.dataset == (variant if variant in BUILDERS else "phantom")
    assert f"python -m awcl_jax.main --config=configs/{name}.py" in (CONFIGS / f"{name}.py").read_text()


@pytest.mark.parametrize("name", VARIANTS)
def test_an_unknown_variant_is_named_with_those_there_are(name):
    with pytest.raises(InputError, match=f"Unknown variant 'papr'; use one of {', '.join(VARIANTS[name][1:])}"):
        load(CONFIGS / f"{name}.py", "papr")


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("task.kind", "depth", "one of planes, segmentation; got 'depth'"),
        ("task.granularity", "medium", "one of fine, coarse; got 'medium'"),
        ("task.label_fraction", 0.0, "above 0 and at most 1; got 0.0"),
        ("task.label_fraction", 1.2, "above 0 and at most 1; got 1.2"),
        ("encoder.init", "", "random, a run or a file; got"),
        ("train.validate_every", 0, "at least 1; got 0"),
        ("train.patience", 0, "at least 1; got 0"),
        ("data.dataset", "imagenet", "one of phantom, .*; got 'imagenet'"),
        ("sampler.batch_size", 1, "at least 2 frames; got 1"),
        ("model.arch", "vgg16", "one of resnet18, .*; got 'vgg16'"),
        ("augment.size", 200, "at most config.data.size=96, the size of the frames; got 200"),
        ("optim.warmup_steps", 600, "below config.train.steps=600; got 600"),
    ],
)
def test_a_bad_value_is_named_with_its_rule(field, value, rule):
    with pytest.raises(InputError, match=rf"config\.{field}\b.*{rule}") as caught:
        validate(changed(**{field: value}))
    assert "\n" not in str(caught.value)


def test_all_problems_come_in_one_line():
    with pytest.raises(InputError) as caught:
        validate(changed(task__kind="depth", train__steps=0, task__label_fraction=2.0), devices=3)
    for field in ("task.kind", "train.steps", "task.label_fraction", "sampler.batch_size"):
        assert f"config.{field}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fields_are_set_from_a_command_line():
    config = command_line(
        f"--config={CONFIGS / 'downstream_segmentation.py'}:tiny",
        "--config.task.head=()",
        "--config.task.label_fraction=0.1",
        "--config.train.patience=3",
        "--config.encoder.init=runs/fine",
        "--config.encoder.frozen",
    )
    validate(config)
    assert (config.task.head, config.task.label_fraction, config.train.patience) == ((), 0.1, 3)
    assert (config.encoder.init, config.encoder.frozen) == ("runs/fine", True)


def test_a_pretraining_configuration_has_no_task():
    # The main command tells the two kinds of run apart by it.
    assert "task" in default_downstream_config()
    assert "task" not in default_config()
