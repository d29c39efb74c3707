"""The folder of a run."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from awcl_jax.config.fields import to_dict
from awcl_jax.config.pretraining import default_config
from awcl_jax.report.contents import read_run
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.run_folder import open_run, read_frames, read_json, write_frames, write_json
from tests.helpers.configurations import command_line

pytestmark = pytest.mark.quick


def config_of(**changed):
    config = default_config()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changed.items()})
    return to_dict(config)


def test_a_new_run_makes_its_folder_and_records_what_it_is(tmp_path):
    open_run(tmp_path / "runs" / "a", config=config_of(seed=3), fingerprint="f00d")
    written = json.loads((tmp_path / "runs" / "a" / "config.json").read_text())
    assert written == {"config": config_of(seed=3), "data": "f00d"}
    assert [file.name for file in (tmp_path / "runs" / "a").iterdir()] == ["config.json"]


def test_an_empty_folder_will_do(tmp_path):
    open_run(tmp_path, config=config_of(), fingerprint="f00d")
    assert (tmp_path / "config.json").is_file()


def test_the_same_run_goes_on_and_its_config_stays(tmp_path):
    open_run(tmp_path, config=config_of(), fingerprint="f00d")
    (tmp_path / "checkpoints").mkdir()
    before = (tmp_path / "config.json").read_bytes()
    open_run(tmp_path, config=config_of(), fingerprint="f00d")
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_config_that_was_not_yet_through_json_is_the_same_run(tmp_path):
    config = default_config()
    open_run(tmp_path, config=config.to_dict(), fingerprint="f00d")
    open_run(tmp_path, config=config.to_dict(), fingerprint="f00d")


def test_other_data_is_refused(tmp_path):
    open_run(tmp_path, config=config_of(), fingerprint="f00d")
    with pytest.raises(InputError, match=r"run on other data \(fingerprint f00d, now beef\)"):
        open_run(tmp_path, config=config_of(), fingerprint="beef")


def test_other_pictures_are_refused_if_the_run_recorded_its_own(tmp_path):
    open_run(tmp_path / "new", config=config_of(), fingerprint="f00d", pixels="a+b+c")
    open_run(tmp_path / "new", config=config_of(), fingerprint="f00d", pixels="a+b+c")
    with pytest.raises(InputError, match=r"run on other pictures.* \(fingerprint a\+b\+c, now a\+b\+d\)"):
        open_run(tmp_path / "new", config=config_of(), fingerprint="f00d", pixels="a+b+d", begun=True)
    open_run(tmp_path / "old", config=config_of(), fingerprint="f00d")
    open_run(tmp_path / "old", config=config_of(), fingerprint="f00d", pixels="a+b+c")


def test_a_run_on_an_earlier_phantom_is_told_where_those_are(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny, elsewhere = config_of(data__preset="tiny"), config_of(data__path=str(tmp_path / "phantom" / "1.0.0"))
    open_run(tmp_path / "run", config=tiny, fingerprint="f00d", pixels="a")
    where = rf"the earlier ones made here are in {tmp_path}/cache/awcl_jax/datasets/phantom/tiny\.$"
    with pytest.raises(InputError, match=where):
        open_run(tmp_path / "run", config=tiny, fingerprint="f00d", pixels="b")
    with pytest.raises(InputError, match=r"another --workdir\.$"):
        open_run(tmp_path / "run", config=elsewhere, fingerprint="f00d", pixels="b")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, r"with other seed \(0 -> 1\)\."),
        ({"model__arch": "resnet34"}, r"with other model.arch \(resnet18 -> resnet34\)\."),
        ({"train__steps": 700, "seed": 1}, r"with other seed \(0 -> 1\), train.steps \(1000 -> 700\)\."),
        ({"augment__blur": ()}, r"with other augment.blur \(\[0.3, 1.2\] -> \[\]\)\."),
        ({"seed": 1, "loss__temperature": 0.5}, r"loss.temperature \(0.1 -> 0.5\), seed \(0 -> 1\)\."),
    ],
)
def test_another_run_is_refused_by_the_fields_that_differ(tmp_path, changed, said):
    open_run(tmp_path, config=config_of(), fingerprint="f00d")
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InputError, match=said):
        open_run(tmp_path, config=config_of(**changed), fingerprint="f00d")
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_finished_run_of_more_steps_names_the_command_that_lengthens_it(tmp_path):
    def message(steps):
        with pytest.raises(InputError) as refused:
            open_run(tmp_path, config=config_of(train__steps=steps), fingerprint="f00d")
        return str(refused.value)

    open_run(tmp_path, config=config_of(), fingerprint="f00d")
    assert "Resume it with --config.train.steps=1000, or choose another --workdir." in message(1500)
    (tmp_path / "results.json").write_text("{}")
    assert message(700).endswith("got 700. Choose another --workdir.")
    _, _, command = message(1500).partition("python -m awcl_jax.main ")
    config = command_line(*(part for part in command.split() if not part.startswith("--workdir=")))
    # All fields are those of the run, but for these three.
    wanted = config_of(train__steps=500, model__init=str(tmp_path), model__init_head=True)
    assert to_dict(config) == wanted
    assert f"--workdir={tmp_path}-longer" in command
    assert "warmup" not in command
    assert " --config.optim.warmup_steps=0 --workdir=" in message(1020)  # a warm-up of 20 steps would not end


def test_what_does_not_touch_the_numbers_may_change(tmp_path):
    open_run(tmp_path, config=config_of(), fingerprint="f00d")
    free = {"data__path": "/moved", "data__threads": 8, "train__log_every": 1, "train__checkpoint_every": 7}
    open_run(tmp_path, config=config_of(**free, report__pictures=False), fingerprint="f00d")


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"is not empty and not a run folder: config.json not found\. Choose another"):
        open_run(tmp_path, config=config_of(), fingerprint="f00d")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_start_that_was_killed_does_not_lock_the_folder(tmp_path):
    (tmp_path / "config.json.part").write_text('{"conf')
    open_run(tmp_path, config=config_of(), fingerprint="f00d")
    assert json.loads((tmp_path / "config.json").read_text())["data"] == "f00d"


def test_processes_of_one_run_may_claim_its_folder_at_once(tmp_path):
    config = config_of()
    with ThreadPoolExecutor(8) as pool:
        for attempt in range(20):
            folder = tmp_path / str(attempt)
            claims = [pool.submit(open_run, folder, config=config, fingerprint="f00d") for _ in range(8)]
            for done in claims:
                done.result()


def test_a_process_whose_host_does_not_see_the_run_is_refused(tmp_path):
    config = config_of()
    with pytest.raises(InputError, match=r"has started, but not in this host's .*run\. Choose a --workdir that all"):
        open_run(tmp_path / "run", config=config, fingerprint="f00d", begun=True)
    assert not (tmp_path / "run").exists()
    open_run(tmp_path / "run", config=config, fingerprint="f00d")
    open_run(tmp_path / "run", config=config, fingerprint="f00d", begun=True)
    with pytest.raises(InputError, match="other data"):
        open_run(tmp_path / "run", config=config, fingerprint="beef", begun=True)


@pytest.mark.parametrize("text", ["", '{"config": {', "[1, 2]", "\x00"])
def test_a_broken_config_is_named_and_kept(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config.json is not (JSON|a JSON object)") as caught:
        open_run(tmp_path, config=config_of(), fingerprint="f00d")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "config.json").read_text() == text


@pytest.mark.parametrize("content", [{"data": "f00d", "config": [1]}, {"data": "f00d", "config": None}])
def test_a_config_of_another_form_is_bad_input(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"config\.json|another run"):
        open_run(tmp_path, config=config_of(), fingerprint="f00d")


@pytest.mark.parametrize("below", ["", "sub"])
def test_a_file_in_place_of_the_folder_is_an_os_error(tmp_path, below):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(OSError, match="taken"):
        open_run(tmp_path / "taken" / below, config=config_of(), fingerprint="f00d")
    assert (tmp_path / "taken").read_text() == "x"


def test_json_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "results.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert read_json(file) == {"a": 1}
    write_json(file, {"a": 2})
    assert read_json(file) == {"a": 2}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "tensorboard/events"])
def test_a_link_in_a_run_is_refused_when_it_is_resumed_or_shown(tmp_path, name):
    run, secret = tmp_path / "run", tmp_path / "secret"
    secret.write_text("of this machine\n")
    options = {"config": {"seed": 0}, "fingerprint": "a"}
    open_run(run, **options)
    open_run(run, **options)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(secret)
    for use in (lambda: open_run(run, **options), lambda: read_run(run)):
        with pytest.raises(InputError, match=f"{run / name} is a link, which is not followed"):
            use()
    assert secret.read_text() == "of this machine\n"


def test_texts_that_begin_like_a_formula_are_written_as_text_and_read_back(tmp_path):
    rows = [{"frame": "=1+2", "patient": "@p", "hc": -1.5}, {"frame": "-a", "patient": "'=", "hc": 2}]
    write_frames(tmp_path / "test_frames.csv", rows)
    lines = (tmp_path / "test_frames.csv").read_text().splitlines()
    assert lines == ["frame,patient,hc", "'=1+2,'@p,-1.5", "'-a,''=,2"]
    read = read_frames(tmp_path / "test_frames.csv")
    assert [(row["frame"], row["patient"]) for row in read] == [("=1+2", "@p"), ("-a", "'=")]
    assert [row["hc"] for row in read] == ["-1.5", "2"]


def test_names_in_any_script_are_written_and_read_in_any_locale(tmp_path):
    rows = [{"frame": "a", "label": "Schädel", "prediction": "心臓"}]
    code = (
        "import sys; from pathlib import Path; from awcl_jax.train.run_folder import read_frames, write_frames;"
        "file = Path(sys.argv[1]); rows = read_frames(file); file.unlink(); write_frames(file, rows)"
    )
    write_frames(tmp_path / "frames.csv", rows)
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "frames.csv"], env=plain, check=True)
    assert read_frames(tmp_path / "frames.csv") == rows
