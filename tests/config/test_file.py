"""Configurations from JSON, which is only read, and that nothing else is executed but Python."""

import json
from pathlib import Path

import pytest
from absl import flags

from awcl_jax.config.downstream import default_downstream_config
from awcl_jax.config.downstream import validate as validate_downstream
from awcl_jax.config.fields import to_dict
from awcl_jax.config.file import define_config, parse_flags, read_config
from awcl_jax.config.pretraining import default_config, validate
from awcl_jax.data.about import About, as_json
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.run_folder import open_run
from tests.helpers.configurations import CONFIGS

pytestmark = pytest.mark.quick


def command_line(*arguments):
    """The configuration that these arguments make."""
    values, argv = flags.FlagValues(), ["awcl_jax.main", *map(str, arguments)]
    holder = define_config(values, sys_argv=argv)
    parse_flags(argv, values)
    return holder.value


@pytest.fixture
def written(tmp_path):
    """Write a JSON file, and give it."""

    def write(content, name="given.json"):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path / name

    return write


def test_a_few_fields_have_the_defaults_for_the_others(written):
    config = read_config(written({"granularity": "coarse", "train": {"steps": 40}, "augment": {"blur": []}}))
    wanted = default_config()
    wanted.granularity, wanted.train.steps, wanted.augment.blur = "coarse", 40, ()
    assert to_dict(config) == to_dict(wanted)
    assert config.augment.blur == ()
    validate(config)


def test_a_task_makes_it_a_downstream_run(written):
    config = read_config(written({"task": {"kind": "segmentation"}, "encoder": {"frozen": True}}))
    wanted = default_downstream_config()
    wanted.task.kind, wanted.encoder.frozen = "segmentation", True
    assert to_dict(config) == to_dict(wanted)
    validate_downstream(config)


@pytest.mark.parametrize("default", [default_config, default_downstream_config])
def test_what_a_run_writes_makes_that_run_again(default, tmp_path):
    config = default()
    config.seed, config.optim.clip_norm, config.optim.learning_rate = 7, 1.5, 1
    described = as_json([About("lab", "", "own", "a column", confirmed=True)])
    open_run(tmp_path / "run", config=to_dict(config), fingerprint="f00d", pixels="ba5e", datasets=described)
    again = command_line(f"--config={tmp_path / 'run' / 'config.json'}")
    assert again.to_dict() == config.to_dict()
    open_run(tmp_path / "run", config=to_dict(again), fingerprint="f00d", pixels="ba5e")  # it is the same run


def test_fields_are_set_over_json(written):
    config = command_line(
        f"--config={written({'train': {'steps': 40}})}",
        *("--config.train.steps=50", "--config.augment.blur=(0.5, 0.9)", "--config.sampler.anatomies=3"),
    )
    assert (config.train.steps, config.augment.blur, config.sampler.anatomies) == (50, (0.5, 0.9), 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"granularty": "fine"}, r"config has no field 'granularty': did you mean config\.granularity\?"),
        ({"train": {"zz": 4}}, r"config\.train has no field 'zz': its fields are bad_steps, "),
        ({"task": {"kind": "planes"}, "queue": {}}, r"config has no field 'queue'"),
        ({"train": 4}, r"config\.train must be a group of fields; got 4"),
        ({"seed": {}}, r"config\.seed must be a whole number; got \{\}"),
        ({"seed": True}, r"config\.seed must be a whole number; got True"),
        ({"seed": 1.0}, r"config\.seed must be a whole number; got 1\.0"),
        ({"seed": None}, r"config\.seed must be a whole number; got None"),
        ({"queue": {"momentum": "0.5"}}, r"config\.queue\.momentum must be a number; got '0\.5'"),
        ('{"loss": {"temperature": Infinity}}', r"config\.loss\.temperature must be a number; got inf"),
        ({"model": {"hidden": "many"}}, r"config\.model\.hidden must be a whole number or None; got 'many'"),
        ({"optim": {"decay_all": 1}}, r"config\.optim\.decay_all must be True or False; got 1"),
        ({"data": {"path": "a\nb"}}, r"config\.data\.path must be a line of text; got 'a\\nb'"),
        ({"data": {"unlabelled": "a"}}, r"config\.data\.unlabelled must be a list of .*; got 'a'"),
        ({"augment": {"blur": [[0.1], 1]}}, r"config\.augment\.blur must be a list of .*; got \(\[0\.1\], 1\)"),
        ({"trane": 1, "seed": []}, r"'trane'.*; config\.seed must be a whole number"),
        ([1], "must be a JSON object of fields; got list"),
        ("{", r"is not JSON \(Expecting"),
        ("[" * 100_000, r"is not JSON \(maximum recursion"),
        ('{"seed": ' + "9" * 5_000 + "}", r"is not JSON \(Exceeds the limit"),
        ("import os", r"is not JSON \(Expecting"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_in_one_line(content, said, written):
    with pytest.raises(InputError, match=said) as caught:
        command_line(f"--config={written(content)}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "many", True, [1], {}])
def test_kinds_are_looked_at_wherever_a_configuration_comes_from(value):
    config = default_config()
    with config.ignore_type():
        config.train.steps = value
    with pytest.raises(InputError, match=r"config\.train\.steps must be a whole number; got"):
        validate(config)
    del config.train.steps
    with pytest.raises(InputError, match=r"config\.train\.steps is missing"):
        validate(config)


@pytest.mark.parametrize("name", ["evil.json", "EVIL.JSON", "evil.json:tiny", "evil.txt", "evil", "evil.py.txt:tiny"])
def test_only_what_calls_itself_python_is_executed(name, tmp_path):
    marker = tmp_path / "marker"
    code = f"open({str(marker)!r}, 'w')\nfrom awcl_jax.config import default_config as get_config\n"
    (tmp_path / "trusted.py").write_text(code)
    command_line(f"--config={tmp_path / 'trusted.py'}")
    assert marker.exists()  # it would be executed
    marker.unlink()
    (tmp_path / name.partition(":")[0]).write_text(code)
    with pytest.raises(InputError, match=r"is not JSON|cannot have a variant|FILE\.py\[:VARIANT\], or FILE\.json"):
        command_line(f"--config={tmp_path / name}")
    assert not marker.exists()


def test_a_json_file_that_is_not_there_is_an_error_of_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError):
        command_line(f"--config={tmp_path / 'none.json'}")


@pytest.mark.parametrize("given", ["{}", "None", "open('/no/such/file')"])
def test_python_that_gives_no_configuration_is_bad_input(given, tmp_path):
    (tmp_path / "given.py").write_text(f"def get_config():\n  return {given}\n")
    with pytest.raises(InputError, match=r"get_config\(\) must return a ConfigDict"):
        command_line(f"--config={tmp_path / 'given.py'}")


def test_python_has_its_variants():
    assert command_line(f"--config={CONFIGS / 'coarse.py'}:tiny").data.preset == "tiny"


@pytest.mark.parametrize(
    ("name", "holds"), [("../../etc", False), ("a/b", False), ("", False), ("..", True), ("a b", True)]
)
def test_the_name_of_a_run_stays_in_its_folder(name, holds):
    # A run without --workdir makes runs/TIME-NAME.
    config = default_config()
    config.name = name
    assert (Path("runs") / f"0-{name}").resolve().parent == Path("runs").resolve() or not holds
    if holds:
        validate(config)
        return
    with pytest.raises(InputError, match=r"config\.name must be non-empty and without a /"):
        validate(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config():\n    return 1 / 0\n", r"bad.py, line 2, fails: ZeroDivisionError: division by zero$"),
        ("import no_such_module\n", r"bad.py, line 1, fails: ModuleNotFoundError: No module named 'no_such_module'$"),
        ("def get_config(:\n", r"bad.py fails: SyntaxError: "),
        ("def get_config():\n    raise ValueError('my\\nown')\n", r"bad.py.* fails: ValueError: my"),
        ("import sys\nsys.exit(0)\n", r"bad.py, line 2, fails: SystemExit: 0$"),
    ],
)
def test_a_python_configuration_that_fails_is_one_line(tmp_path, content, message):
    (tmp_path / "bad.py").write_text(content)
    values = flags.FlagValues()
    argv = ["main", f"--config={tmp_path / 'bad.py'}"]
    define_config(values, sys_argv=argv)
    with pytest.raises(InputError, match=message) as caught:
        parse_flags(argv, values)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("file", ["configs/fine.py", "fine"])
def test_an_unknown_variant_is_one_short_line(file):
    values = flags.FlagValues()
    argv = ["main", f"--config={file}:nope"]
    define_config(values, sys_argv=argv)
    with pytest.raises(InputError, match=r"Unknown variant 'nope'; use one of tiny") as caught:
        parse_flags(argv, values)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.train.steps=abc", r"--config\.train\.steps=abc: must be a whole number$"),
        ("--config.optim.learning_rate=fast", r"--config\.optim\.learning_rate=fast: must be a number$"),
        ("--config.report.pictures=maybe", r"--config\.report\.pictures=maybe: must be true or false$"),
        ("--config.train.stpes=40", r"no field 'stpes'\. Did you mean"),
    ],
)
def test_a_flag_of_the_wrong_kind_or_name_says_what_is_right(flag, said):
    with pytest.raises(InputError, match=said):
        command_line(f"--config={CONFIGS / 'fine.py'}", flag)


def test_a_file_that_is_not_there_names_the_nearest():
    with pytest.raises(InputError, match=r"fin\.py does not exist; the shipped configuration is --config=fine$"):
        command_line("--config=configs/fin.py")
