"""Encoders on the Hugging Face hub, against a stand-in for its server, with the real client.

The client is part of the extra `test`; where it is missing, these tests are skipped.
"""

import importlib
import importlib.util
import shutil
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from awcl_jax.config.fields import to_dict
from awcl_jax.config.initial import initial_variables
from awcl_jax.data.about import About
from awcl_jax.embed.command import load_encoder
from awcl_jax.export import command as export
from awcl_jax.export import encoder_files
from awcl_jax.export.model_card import Provenance, model_card
from awcl_jax.export.preprocessing import Preprocessing
from awcl_jax.models.resnet import make_resnet
from awcl_jax.models.weights import load_torch_resnet
from awcl_jax.runtime import hub
from awcl_jax.runtime.errors import InputError
from configs import downstream_planes, fine
from tests.helpers.hub_server import TOKEN, Hub

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = importlib.import_module("huggingface_hub.constants")

PREPROCESSING = Preprocessing(48, 32, mean=0.17, std=0.18)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub, and a user who is signed in to it; each test has its own caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub().serving() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            served.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield served


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An export of an untrained encoder, as safetensors and for JAX, with its card."""
    out = tmp_path_factory.mktemp("export")
    model = make_resnet("resnet18", width_factor=0.0625)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 1)), train=False))(jax.random.key(0))
    encoder = encoder_files.write(
        out,
        variables,
        arch="resnet18",
        width_factor=0.0625,
        strides="v1.5",
        preprocessing=PREPROCESSING,
        formats=["safetensors"],
        channels=1,
    )
    card = model_card(
        Provenance(
            settings=to_dict(fine.get_config("tiny")),
            fields={},
            datasets=[About("phantom", "tiny", "simulated", "the simulation", confirmed=True)],
            fingerprint="f00d",
            step=1,
            results={},
            validation={},
            version="1",
        ),
        encoder=encoder,
        preprocessing=PREPROCESSING,
        formats=["safetensors"],
    )
    (out / "README.md").write_text(card)
    return out


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (2, 48, 48), np.uint8)


def test_a_pushed_export_is_private_and_loads_as_the_folder_does(server, folder, frames):
    address = hub.push(folder, "lab/encoder", public=False, message="a test")
    assert address == f"{server.url}/lab/encoder"
    model = server.models["lab/encoder"]
    assert model["private"]
    assert model["commits"][-1] == {file.name: file.read_bytes() for file in folder.iterdir()}
    np.testing.assert_array_equal(load_encoder("hf://lab/encoder")(frames), load_encoder(folder)(frames))


def test_a_push_deletes_what_an_earlier_export_left_and_nothing_else(server, folder):
    earlier = dict.fromkeys(("encoder.jax", "encoder.onnx", "encoder.safetensors"), b"of another encoder")
    server.commit("lab/encoder", earlier | {"notes.md": b"mine", "figures/a.png": b"mine"}, private=True)
    hub.push(folder, "lab/encoder", public=False, message="a test")
    new = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert server.models["lab/encoder"]["commits"][-1] == new | {"notes.md": b"mine", "figures/a.png": b"mine"}


@pytest.mark.parametrize(("flags", "private"), [([], True), (["--public"], False)])
def test_the_command_pushes_what_it_exports(server, folder, tmp_path, monkeypatch, capsys, flags, private):
    monkeypatch.setattr(export, "export_encoder", lambda run, out, **options: shutil.copytree(folder, out))
    export.main(["runs/fine", f"--out={tmp_path / 'out'}", "--push=lab/encoder", *flags])
    assert server.models["lab/encoder"]["private"] == private
    assert {*server.models["lab/encoder"]["commits"][-1]} == {file.name for file in folder.iterdir()}
    printed = f"{'private' if private else 'public'}: {server.url}/lab/encoder"
    assert capsys.readouterr().out.splitlines()[-1] == printed


@pytest.mark.parametrize("field", ["model.init", "encoder.init"])
def test_a_run_starts_from_an_encoder_on_the_hub(server, folder, field):
    server.commit("lab/encoder", {file.name: file.read_bytes() for file in folder.iterdir()})
    config = (fine if field == "model.init" else downstream_planes).get_config("tiny")
    config.model.arch, config.model.width_factor = "resnet18", 0.0625
    config.augment.mean, config.augment.std = 0.17, 0.18
    group, name = field.split(".")
    config[group][name] = "hf://lab/encoder"
    started = initial_variables(config)
    read = load_torch_resnet(folder / "encoder.safetensors", "resnet18", mean=0.17, std=0.18, width_factor=0.0625)
    for kind, tree in read.items():
        jax.tree.map(np.testing.assert_array_equal, started.variables[kind]["encoder"], tree)


def test_only_files_of_an_encoder_are_downloaded(server, folder):
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    server.commit("lab/encoder", files | {"run.py": b"import os", "encoder_torch.py": b"", "a/encoder.jax": b""})
    fetched = hub.fetch("hf://lab/encoder")
    assert {file.name for file in fetched.iterdir()} == {"preprocessing.json", "encoder.safetensors"}
    assert not any(file.is_symlink() for file in fetched.iterdir())


def test_a_revision_is_that_commit_and_none_is_the_newest(server, folder):
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    first = server.commit("lab/encoder", files)
    server.commit("lab/encoder", {"encoder.safetensors": b"newer"})
    assert (hub.fetch(f"hf://lab/encoder@{first}") / "encoder.safetensors").read_bytes() != b"newer"
    assert (hub.fetch("hf://lab/encoder") / "encoder.safetensors").read_bytes() == b"newer"
    with pytest.raises(InputError, match="hf://lab/encoder@v9 has no such revision"):
        hub.fetch("hf://lab/encoder@v9")


def test_without_a_network_the_copy_is_used(server, folder, frames, monkeypatch):
    server.commit("lab/encoder", {file.name: file.read_bytes() for file in folder.iterdir()})
    expected = load_encoder("hf://lab/encoder")(frames)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    np.testing.assert_array_equal(load_encoder("hf://lab/encoder")(frames), expected)
    with pytest.raises(InputError, match="the hub cannot be reached, or HF_HUB_OFFLINE is set"):
        load_encoder("hf://lab/another")


def test_a_server_that_does_not_answer_is_one_line(server, monkeypatch):
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        value = getattr(constants, name)
        monkeypatch.setattr(constants, name, value.replace(server.url, "http://127.0.0.1:9"))
    with pytest.raises(InputError, match=r"hf://lab/encoder cannot be read"):
        hub.fetch("hf://lab/encoder")


def test_a_private_model_needs_its_owner(server, folder, monkeypatch):
    server.commit("lab/encoder", {file.name: file.read_bytes() for file in folder.iterdir()}, private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="hf://lab/encoder does not exist on the hub, or you may not see it"):
        hub.fetch("hf://lab/encoder")
    with pytest.raises(InputError, match=r"--push needs you to sign in to the hub. Run `hf auth login`"):
        hub.require_push("lab/encoder")


@pytest.mark.parametrize("url", ["hf://lab", "hf://", "hf://lab/encoder/checkpoints/5", "hf://../x", "hf://lab/a@"])
def test_other_addresses_are_refused(server, url):
    with pytest.raises(InputError, match="must be hf://USER/NAME or hf://USER/NAME@REVISION"):
        hub.fetch(url)
    assert server.asked == []


def test_a_model_of_another_program_is_refused(server):
    server.commit("lab/other", {"model.safetensors": b"x", "config.json": b"{}"})
    with pytest.raises(InputError, match=r"hf://lab/other is not an encoder of awcl_jax.export: preprocessing.json"):
        hub.fetch("hf://lab/other")


def test_a_public_model_is_not_written_to_without_the_flag(server, folder):
    server.commit("lab/encoder", {"README.md": b"mine"})
    with pytest.raises(InputError, match=r"lab/encoder is public on the hub. Add --public"):
        hub.push(folder, "lab/encoder", public=False, message="a test")
    assert server.models["lab/encoder"]["commits"][-1] == {"README.md": b"mine"}
    hub.push(folder, "lab/encoder", public=True, message="a test")
    assert "encoder.safetensors" in server.models["lab/encoder"]["commits"][-1]


def test_a_model_of_others_is_not_written_to(server, folder):
    with pytest.raises(InputError, match=r"others/encoder cannot be written .*403"):
        hub.push(folder, "others/encoder", public=False, message="a test")


def test_the_card_is_valid(folder):
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    fields = card.data.to_dict()
    assert fields == yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert fields["library_name"] == "awcl_jax"
    assert fields["pipeline_tag"] == "image-feature-extraction"
    assert None not in fields.values()
    assert "# license: TO FILL IN\n" in (folder / "README.md").read_text()


def test_the_client_is_asked_for_before_anything_is_written(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "huggingface_hub" else find(name))
    with pytest.raises(SystemExit):
        export.main([str(tmp_path), f"--out={tmp_path / 'out'}", "--push=lab/encoder"])
    assert "--push needs the package huggingface_hub. Run pip install 'awcl_jax[hub]'" in capsys.readouterr().err
    with pytest.raises(InputError, match="hf://lab/encoder needs the package huggingface_hub"):
        load_encoder("hf://lab/encoder")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--push=encoder"], "--push must be USER/NAME"),
        (["--push=lab/a--b"], "--push must be a name that the hub allows; got 'lab/a--b' ("),
        (["--push=lab/encoder.git"], "--push must be a name that the hub allows; got 'lab/encoder.git' ("),
        (["--push=lab/encoder."], "--push must be a name that the hub allows; got 'lab/encoder.' ("),
        ([f"--push=lab/{'a' * 97}"], "--push must be a name that the hub allows; got 'lab/aaa"),
        (["--public"], "--public goes with --push=USER/NAME"),
    ],
)
def test_wrong_flags_are_refused(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        export.main([str(tmp_path), f"--out={tmp_path / 'out'}", *flags])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("token", ["hf_\N{LATIN SMALL LETTER A WITH DIAERESIS}", "hf_a\x7f"])
def test_a_token_that_no_header_can_hold_is_refused_before_anything_is_written(token, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    with pytest.raises(SystemExit):
        export.main([str(tmp_path), f"--out={tmp_path / 'out'}", "--push=lab/encoder"])
    said = capsys.readouterr().err
    assert "The token of the hub has characters that no token has" in said
    assert "hf_" not in said


def test_a_push_that_fails_leaves_the_export_and_names_it(server, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "export_encoder", lambda run, out, **options: shutil.copytree(folder, out))
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", mock.Mock(side_effect=ConnectionError("no route")))
    with pytest.raises(SystemExit) as left:
        export.main(["runs/fine", f"--out={tmp_path / 'out'}", "--push=lab/encoder"])
    assert left.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: lab/encoder cannot be written (no route). Check the network. The export is complete")
    assert str(tmp_path / "out") in line
    assert {file.name for file in (tmp_path / "out").iterdir()} == {file.name for file in folder.iterdir()}


def test_a_name_that_the_hub_does_not_allow_is_refused_when_read():
    with pytest.raises(InputError, match=r"hf://lab/a--b is not a name that the hub allows .*Check the name"):
        load_encoder("hf://lab/a--b")


def test_the_client_is_not_imported_without_need():
    code = "import sys, awcl_jax.export.command, awcl_jax.train.workdir; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
