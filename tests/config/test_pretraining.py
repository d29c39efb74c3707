"""Configurations: every file and variant, every rule, and overriding from a command line."""

import numpy as np
import pytest
from absl import flags

from awcl_jax.config import build
from awcl_jax.config.checks import idle_fields
from awcl_jax.config.fields import augmentation, from_dict, to_dict
from awcl_jax.config.pretraining import default_config, validate
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.run_folder import FREE_ON_RESUME, changed_fields
from tests.helpers.configurations import CONFIGS, command_line, load

pytestmark = pytest.mark.quick

FILES = sorted(file for file in CONFIGS.glob("*.py") if "import base\n" in file.read_text())
VARIANTS = ("", "tiny", "fetal_planes_db", "from_weights", "paper", "vit", "convnext")


@pytest.fixture(autouse=True)
def configs_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS.parent)


def changed(**fields):
    config = default_config()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


# Files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_configuration_loads_and_is_valid(file, variant):
    config = load(file, variant)
    validate(config)
    assert config.name == file.stem
    assert set(config.keys()) == set(default_config().keys())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_configuration_says_its_command(file):
    assert f"python -m awcl_jax.main --config=configs/{file.name}" in file.read_text()
    assert to_dict(load(file)) == to_dict(load(file, ""))


def test_an_unknown_variant_is_named_with_those_there_are():
    with pytest.raises(
        InputError, match="Unknown variant 'papr'; use one of tiny, fetal_planes_db, from_weights, paper, vit, con"
    ):
        load(CONFIGS / "fine.py", "papr")


def test_the_fine_configuration_is_the_default_one():
    assert to_dict(load(CONFIGS / "fine.py")) == to_dict(default_config())


def test_the_paper_variant_has_the_published_settings():
    config = load(CONFIGS / "fine.py", "paper")
    assert (config.model.arch, config.augment.size, config.sampler.batch_size) == ("resnet18", 227, 32)
    assert (config.optim.name, config.optim.learning_rate, config.optim.weight_decay) == ("adam", 1e-3, 1e-6)
    assert (config.model.hidden, config.model.embedding, config.loss.temperature) == (512, 128, 0.5)
    assert (config.augment.crop_area, config.augment.flip) == ((0.08, 1.0), 0.5)


def test_the_vit_variant_builds_a_vit_of_published_weights():
    model = build.make_model(load(CONFIGS / "fine.py", "vit")).encoder
    # timm's vit_small_patch16_224
    assert (model.depth, model.width, model.patch, model.grid) == (12, 384, 16, (14, 14))


def test_the_convnext_variant_builds_a_convnext_of_published_weights():
    model = build.make_model(load(CONFIGS / "fine.py", "convnext")).encoder
    # timm's convnext_tiny
    assert (model.stage_sizes, model.width, model.second) == ((3, 3, 9, 3), 96, False)


def test_the_variant_from_weights_is_that_of_the_dataset_with_a_resnet_50_of_imagenet():
    config = load(CONFIGS / "fine.py", "from_weights")
    changed = changed_fields(to_dict(load(CONFIGS / "fine.py", "fetal_planes_db")), to_dict(config))
    assert {name.partition(" ")[0] for name in changed} == {"model.arch", "augment.mean", "augment.std", "train.steps"}
    assert (config.model.width_factor, config.eval.anatomies[0]) == (1.0, "abdomen")


# Rules --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("positives", "plane", "one of anatomy, scan, frame; got 'plane'"),
        ("granularity", "medium", "one of fine, coarse, both; got 'medium'"),
        ("eval.granularity", "medium", "one of fine, coarse; got 'medium'"),
        ("data.dataset", "imagenet", "one of phantom, fetal_planes_db, .*; got 'imagenet'"),
        ("sampler.mode", "fair", "one of balanced, natural; got 'fair'"),
        ("sampler.pairs", "twins", "one of frame, cross_scan; got 'twins'"),
        ("model.arch", "resnet19", "one of resnet18, resnet34, resnet50, vit_tiny, .*; got 'resnet19'"),
        ("model.init_input", "grey", "one of auto, imagenet, half, openai; got 'grey'"),
        ("model.train_blocks", 2, r"needs a vision transformer or a ConvNeXt \(vit_tiny, .*\); got 2 with resnet18"),
        ("model.freeze_patches", True, "needs a vision transformer or a ConvNeXt .*; got True with resnet18"),
        ("optim.layer_decay", 0.9, "needs a vision transformer or a ConvNeXt .*; got 0.9 with resnet18"),
        ("model.convnext.drop_path", 1.0, "from 0 to below 1; got 1.0"),
        # Of another encoder, but no value of any.
        ("model.vit.drop_path", float("nan"), "from 0 to below 1; got nan"),
        ("model.vit.drop_path", -0.1, "from 0 to below 1; got -0.1"),
        ("model.vit.epsilon", float("nan"), "between 0 and 1; got nan"),
        ("optim.layer_decay", 0.0, "above 0 and at most 1; got 0.0"),
        ("model.strides", "v2", "one of .*v1.5.*; got 'v2'"),
        ("model.dtype", "float16", "one of float32, bfloat16; got 'float16'"),
        ("loss.exchange", "scatter", "one of gather, ring; got 'scatter'"),
        ("loss.coarse_weight", 1.5, "a share from 0 to 1; got 1.5"),
        ("queue.size", -1, "0 or more; got -1"),
        ("queue.size", 31, "0 or at least config.sampler.batch_size=32, .*; got 31"),
        ("queue.momentum", 1.0, "from 0 to below 1; got 1.0"),
        ("train.encode_chunks", 0, "at least 1; got 0"),
        ("train.encode_chunks", 5, "divide the 32 frames per device of config.sampler.batch_size=32; got 5"),
        ("optim.name", "adan", "one of adam, adamw, lars, sgd; got 'adan'"),
        ("optim.schedule", "linear", "one of cosine, constant; got 'linear'"),
        ("train.mapping", "vmap", "one of shard_map, pmap; got 'vmap'"),
        ("anatomy_ratio", 1.5, "a share from 0 to 1; got 1.5"),
        ("anatomy_ratio", -0.1, "a share from 0 to 1; got -0.1"),
        ("seed", -1, "0 or more; got -1"),
        ("data.size", 0, "at least 1 pixel; got 0"),
        ("data.val_share", 0.0, "between 0 and 1; got 0.0"),
        ("data.val_share", 1.0, "between 0 and 1; got 1.0"),
        ("data.threads", 0, "at least 1; got 0"),
        ("sampler.batch_size", 1, "at least 2 frames; got 1"),
        ("sampler.unlabelled_share", 1.0, "from 0 to below 1; got 1.0"),
        ("sampler.unlabelled_share", -0.5, "from 0 to below 1; got -0.5"),
        ("model.width_factor", 0.0, "at least 0.015625, a feature in a ResNet's first layer; got 0.0"),
        ("model.width_factor", 1e-30, "at least 0.015625, .*; got 1e-30"),
        ("model.embedding", 1, "at least 2; got 1"),
        ("model.embedding", 2**16 + 1, "at most 65,536; got 65537"),
        ("model.hidden", 10**12, "at most 65,536; got 1000000000000"),
        ("sampler.batch_size", 2**20 + 2, "at most 1,048,576 frames; got 1048578"),
        ("eval.batch_size", 10**10, "at most 1,048,576 frames; got 10000000000"),
        ("loss.block_size", 10**9, "at most 1,048,576; got 1000000000"),
        ("data.threads", 1025, "at most 1,024; got 1025"),
        ("loss.temperature", 0.0, "at least 1e-06; got 0.0"),
        ("loss.temperature", 1e-39, "at least 1e-06; got 1e-39"),
        ("loss.temperature", float("nan"), "at least 1e-06; got nan"),
        ("optim.learning_rate", -1e-3, "above 0; got -0.001"),
        ("optim.weight_decay", -1e-3, "0 or more; got -0.001"),
        ("optim.warmup_steps", -1, "0 or more; got -1"),
        ("optim.warmup_steps", 1000, "below config.train.steps=1000; got 1000"),
        ("eval.neighbours", 0, "at least 1; got 0"),
        ("eval.batch_size", 0, "at least 1 frame; got 0"),
        ("train.steps", 0, "at least 1; got 0"),
        ("train.log_every", 0, "at least 1; got 0"),
        ("train.eval_every", 0, "at least 1; got 0"),
        ("train.checkpoint_every", 0, "at least 1; got 0"),
        ("augment.size", 200, "at most config.data.size=96, the size of the frames; got 200"),
        ("augment.flip", 1.5, "flip .*1.5"),
        ("augment.beams", "curved", "beams .* fixed or fan; got 'curved'"),
        ("augment.greys", (0.5, 0.2, 0.9), "greys .* ascending; got"),
        ("augment.greys", ("x",), "greys must be numbers from 0 to 1, ascending; got"),
        # What stands for "as many as fit" or "none" is not 0.
        ("sampler.anatomies", 0, "at least 1; got 0"),
        ("sampler.scans_per_anatomy", 1, "at least 2; got 1"),
        ("model.hidden", 0, "at least 1; got 0"),
        ("loss.block_size", 0, "at least 1; got 0"),
        ("optim.clip_norm", 0.0, "above 0; got 0.0"),
        ("data.mask_overlays", None, "True or False; got None"),
        ("data.cache_mb", -1, "0 or more; got -1"),
        ("data.preset", "huge", "one of .*default.*; got 'huge'"),
        ("report.map_frames", -5, "got -5"),
    ],
)
def test_a_bad_value_is_named_with_its_rule(field, value, rule):
    group = field.rpartition(".")[0]
    named = field if group != "augment" else group
    with pytest.raises(InputError, match=rf"config\.{named}\b.*{rule}") as caught:
        validate(changed(**{field: value}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("model.vit.patch", 12, "must be one of 8, 14, 16; got 12"),
        (
            "model.vit.patch",
            14,
            "config.augment.size must be a multiple of the patch of 14 pixels; got 64, try 56 or 70",
        ),
        ("model.vit.pool", "max", "must be one of token, mean, both; got 'max'"),
        ("model.vit.activation", "relu", "must be one of gelu, gelu_tanh, quick_gelu; got 'relu'"),
        ("model.vit.registers", -1, "must be from 0 to 64; got -1"),
        ("model.train_blocks", 13, "must be from 1 to the 12 blocks of vit_small; got 13"),
        ("model.train_blocks", 0, "must be from 1 to the 12 blocks of vit_small; got 0"),
    ],
)
def test_a_vision_transformers_fields_have_rules(field, value, rule):
    assert_refused("vit_small", field, value, rule)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("augment.size", 31, "config.augment.size must be at least 32 pixels for convnext_tiny; got 31"),
        ("model.train_blocks", 19, "must be from 1 to the 18 blocks of convnext_tiny; got 19"),
    ],
)
def test_a_convnexts_fields_have_rules(field, value, rule):
    assert_refused("convnext_tiny", field, value, rule)


def assert_refused(arch, field, value, rule):
    config = default_config()
    config.model.arch = arch
    validate(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=rule):
        validate(config)


def test_a_convnexts_learning_rate_falls_by_its_layers_and_its_first_layer_may_stay():
    config = default_config()
    config.model.arch, config.model.freeze_patches, config.optim.layer_decay = "convnext_tiny", True, 0.5
    config.optim.update({"name": "sgd", "learning_rate": 1.0, "schedule": "constant", "warmup_steps": 0})
    config.optim.weight_decay = 0.0
    _, optimiser = build.make_optimiser(config)
    names = ("stem_conv", "stem_norm", "stage2_block8", "norm")
    params = {"encoder": {name: {"bias": np.ones(1, np.float32)} for name in names}}
    updates, _ = optimiser.update(params, optimiser.init(params), params)
    # Of 6 layers: the stem is layer 0, the ninth block of the third stage layer 5, the last normalisation layer 7.
    found = [float(updates["encoder"][name]["bias"][0]) for name in names]
    np.testing.assert_allclose(found, [0, -(0.5**7), -(0.5**2), -1])


@pytest.mark.parametrize("devices", [3, 5, 64])
def test_indivisible_batch_size_error_suggests_one_that_works(devices):
    with pytest.raises(
        InputError, match=rf"config.sampler.batch_size must be divisible by the {devices} devices"
    ) as caught:
        validate(default_config(), devices=devices)
    proposed = int(str(caught.value).rpartition("try ")[2])
    validate(changed(sampler__batch_size=proposed), devices=devices)


@pytest.mark.parametrize("sampler", [{"sampler__mode": "balanced"}, {"sampler__pairs": "cross_scan"}])
def test_simclr_takes_natural_batches_of_one_frame(sampler):
    fields = {"positives": "frame", "sampler__mode": "natural"} | sampler
    with pytest.raises(InputError, match=r"config\.positives='frame' uses no labels"):
        validate(changed(**fields))


def test_positives_of_a_scan_are_not_of_another_scan():
    with pytest.raises(InputError, match=r"config\.positives='scan' needs pairs of one scan: .*; got 'cross_scan'"):
        validate(changed(positives="scan", sampler__pairs="cross_scan"))


def test_the_ring_takes_no_queue():
    validate(changed(loss__exchange="ring"))
    with pytest.raises(InputError, match=r"config\.loss\.exchange='ring' has no queue"):
        validate(changed(loss__exchange="ring", queue__size=64))


def test_all_problems_come_in_one_line():
    with pytest.raises(InputError) as caught:
        validate(changed(granularity="medium", anatomy_ratio=2.0, train__steps=0, augment__size=300), devices=3)
    message = str(caught.value)
    for field in ("granularity", "anatomy_ratio", "train.steps", "augment.size", "sampler.batch_size"):
        assert f"config.{field}" in message
    assert "\n" not in message


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_configuration_has_a_field_without_effect(file, variant):
    assert not list(idle_fields(load(file, variant)))


@pytest.mark.parametrize(
    ("fields", "idle", "why"),
    [
        ({"augment.haze": (-50.0, -40.0)}, "augment.haze", "augment.haze_probability, which is 0"),
        ({"augment.despeckle_probability": 0.5}, "augment.despeckle_probability", "augment.despeckle, which is off"),
        ({"augment.erase": (0.1, 0.2)}, "augment.erase", "augment.erase_probability, which is 0"),
        ({"augment.greys": (0.0, 1.0)}, "augment.greys", "augment.greys_probability, which is 0"),
        ({"augment.jitter_contrast": (0.5, 2.0)}, "augment.jitter_contrast", "augment.jitter_probability, which is 0"),
        ({"augment.jitter_probability": 1.0}, "augment.jitter_probability", "augment.jitter_brightness, which is off"),
        ({"model.vit.drop_path": 0.1}, "model.vit.drop_path", "model.arch is resnet18"),
        ({"model.arch": "vit_tiny", "model.convnext.drop_path": 0.1}, "model.convnext.drop_path", "arch is vit_tiny"),
        ({"augment.haze": (-50.0, -40.0), "augment.haze_probability": 0.2}, None, None),
        ({"augment.shadow": ()}, None, None),
        ({"augment.shadow_probability": 0.0}, None, None),
        ({"model.arch": "vit_tiny", "model.vit.drop_path": 0.1}, None, None),
    ],
)
def test_a_field_without_effect_is_named_and_not_refused(fields, idle, why):
    config = changed(**fields)
    validate(config)  # a run of an earlier version may have it, and is read and resumed
    found = list(idle_fields(config))
    assert len(found) == (idle is not None)
    for sentence in found:
        assert sentence.startswith(f"config.{idle} has no effect: ")
        assert sentence.endswith(why)


# Command line -------------------------------------------------------------------------------------------------------


def test_fields_are_set_from_a_command_line():
    config = command_line(
        f"--config={CONFIGS / 'coarse.py'}:tiny",
        "--config.train.steps=500",
        "--config.sampler.anatomies=3",
        "--config.optim.clip_norm=1.5",
        "--config.loss.block_size=8",
        "--config.augment.blur=(0.5, 0.9)",
        "--config.augment.speckle=()",
        "--config.eval.anatomies=('4CH', 'ACP')",
        "--config.optim.decay_all=true",
    )
    validate(config)
    assert (config.granularity, config.data.preset, config.train.steps) == ("coarse", "tiny", 500)
    assert (config.sampler.anatomies, config.optim.clip_norm, config.loss.block_size) == (3, 1.5, 8)
    assert config.optim.decay_all is True
    assert config.eval.anatomies == ("4CH", "ACP")
    options = augmentation(config)
    assert (options.blur, options.speckle, options.gamma) == ((0.5, 0.9), None, (0.8, 1.25))


@pytest.mark.parametrize("name", ["speckle", "erase", "brightness"])
def test_an_augmentation_that_is_off_is_turned_on_by_a_range(name):
    off = command_line(f"--config={CONFIGS / 'fine.py'}", f"--config.augment.{name}=()")
    on = command_line(f"--config={CONFIGS / 'fine.py'}", f"--config.augment.{name}=(0.1, 0.4)")
    assert getattr(augmentation(off), name) is None
    assert getattr(augmentation(on), name) == (0.1, 0.4)


def test_physics_is_set_from_a_command_line():
    values = ("greys=(0.05, 0.2, 0.9)", "beams=fan", "haze=(-50, -40)", "despeckle=(1, 6)")
    config = command_line(f"--config={CONFIGS / 'fine.py'}", *(f"--config.augment.{value}" for value in values))
    validate(config)
    options = augmentation(config)
    assert (options.greys, options.beams) == ((0.05, 0.2, 0.9), "fan")
    assert (options.haze, options.despeckle) == ((-50.0, -40.0), (1.0, 6.0))


@pytest.mark.parametrize("argument", ["--config.train.steps=many", "--config.optim.learning_rate=fast"])
def test_a_value_of_another_type_is_refused(argument):
    with pytest.raises(flags.Error, match=argument.partition("=")[0].strip("-")):
        command_line(f"--config={CONFIGS / 'fine.py'}", argument)


def test_a_misspelt_field_is_refused_with_the_nearest():
    with pytest.raises(AttributeError, match='Did you mean "steps" instead of "stepz"'):
        command_line(f"--config={CONFIGS / 'fine.py'}", "--config.train.stepz=4")


# Changes ------------------------------------------------------------------------------------------------------------


def test_changed_fields_are_told_with_old_and_new():
    old = to_dict(default_config())
    assert changed_fields(old, old) == []
    new = to_dict(changed(seed=4, model__width_factor=1.0, sampler__anatomies=3))
    assert changed_fields(old, new) == [
        "model.width_factor (0.25 -> 1.0)",
        "sampler.anatomies (None -> 3)",
        "seed (0 -> 4)",
    ]


def test_a_field_missing_in_an_older_file_gets_its_default():
    new = to_dict(changed(seed=4))
    old = to_dict(changed(seed=4))
    del old["model"]["strides"], old["sampler"]
    assert changed_fields(old, new, to_dict(default_config())) == []
    new["model"]["strides"], new["sampler"]["batch_size"] = "v1", 8
    assert changed_fields(old, new, to_dict(default_config())) == [
        "model.strides (v1.5 -> v1)",
        "sampler.batch_size (32 -> 8)",
    ]


@pytest.mark.parametrize("kernel", ["auto", "blocks", "pallas"])
def test_a_removed_field_of_an_earlier_run_is_left_out_and_no_change(kernel):
    now = to_dict(changed(seed=4))
    old = to_dict(changed(seed=4))
    old["loss"]["kernel"] = kernel
    assert to_dict(from_dict(old, default_config())) == now
    assert changed_fields(old, now, to_dict(default_config())) == []


def test_a_removed_field_is_removed_from_its_group_alone():
    with pytest.raises(InputError, match=r"config\.queue has no field 'kernel'"):
        from_dict({"queue": {"kernel": "auto"}}, default_config())


def test_a_field_that_only_one_of_them_has_is_a_change():
    assert changed_fields({"a": {"b": 1}}, {"a": {}}) == ["a.b (1 -> None)"]
    assert changed_fields({}, {"c": 2}) == ["c (None -> 2)"]


def test_the_free_fields_are_fields_and_no_change():
    old = to_dict(default_config())
    for field in FREE_ON_RESUME:
        new = to_dict(default_config())
        *groups, name = field.split(".")
        at = new
        for group in groups:
            at = at[group]
        assert name in at
        at[name] = "other"
        assert changed_fields(old, new) == []
