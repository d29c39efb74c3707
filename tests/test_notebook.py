"""The notebook: every code cell runs, in order, as plain Python and in a small setting."""

import ast
import json
import subprocess
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

import awcl_jax.pretrain
from awcl_jax.config.pretraining import validate
from awcl_jax.ingest import command as ingest

NOTEBOOK = Path(__file__).parents[1] / "launch" / "awcl_colab.ipynb"


@pytest.fixture(scope="module")
def notebook() -> dict:
    return json.loads(NOTEBOOK.read_text())


def code_of(notebook: dict) -> dict[str, str]:
    """The code cells by their id, in order."""
    return {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"}


def test_the_notebook_is_stored_without_outputs_and_in_its_format(notebook):
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        wanted = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            wanted |= {"execution_count", "outputs"}
            assert (cell["execution_count"], cell["outputs"]) == (None, [])
        assert set(cell) == wanted, cell["id"]
        assert isinstance(cell["source"], list)


def test_cells_are_short_and_define_nothing_of_their_own(notebook):
    for name, text in code_of(notebook).items():
        assert len(text.splitlines()) <= 11, name
        kinds = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
        assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)], name


def test_no_address_is_made_up(notebook):
    assert 'REPOSITORY = ""' in code_of(notebook)["settings"]
    assert "https://" not in NOTEBOOK.read_text()


@pytest.mark.parametrize("address", ["", "git@host:lab/awcl.git"])
def test_an_address_that_pip_does_not_take_is_said(notebook, address):
    with pytest.raises(AssertionError, match="an address with ://"):
        exec(code_of(notebook)["install"], {"REPOSITORY": address, "DEVICE": "cpu"})


def draw_pictures(folder: Path) -> None:
    """Two anatomies of 16 patients, as PICTURES/ANATOMY/PATIENT/picture.png."""
    rng = np.random.default_rng(0)
    for anatomy in ("femur", "head"):
        for patient in range(16):
            file = folder / anatomy / f"p{patient}" / "picture.png"
            file.parent.mkdir(parents=True)
            cv2.imwrite(str(file), rng.integers(0, 256, (60, 80), np.uint8))


@pytest.mark.slow
def test_every_cell_runs(notebook, tmp_path, monkeypatch, capsys):
    shown, installed, prepared, real = [], [], [], []
    shell, screen = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    shell.version_info, shell.get_ipython = (9, 0), lambda: None  # Matplotlib asks for them
    screen.Image, screen.display = Path, shown.append
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", screen)
    monkeypatch.setattr(subprocess, "check_call", installed.append)
    run, prepare = awcl_jax.pretrain.run, ingest.main

    def prepare_own(arguments):
        prepared.append(arguments)
        if arguments[0] == "folder":
            prepare(arguments)

    monkeypatch.setattr(ingest, "main", prepare_own)

    def run_small(config, workdir):
        validate(config)
        if config.data.dataset == "phantom":
            assert config.data.path in ("", "data/own")
            with config.unlocked():
                config.train.steps, config.train.eval_every = 6, 6
            return run(config, workdir)
        real.append(config)
        workdir.mkdir(parents=True)
        return (workdir / "embeddings.png").write_bytes(shown[0].read_bytes())

    monkeypatch.setattr(awcl_jax.pretrain, "run", run_small)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    filled_in = {
        'REPOSITORY = ""': 'REPOSITORY = "ssh://ADDRESS"',
        'VARIANT = ""': 'VARIANT = "tiny"',
        "= False": "= True",
    }
    filled_in["SOURCE = None"] = 'SOURCE = "planes"'
    filled_in["PICTURES = None"] = 'PICTURES = "pictures"'
    draw_pictures(tmp_path / "pictures")
    names: dict = {}
    for name, text in code_of(notebook).items():
        if name.endswith("settings"):
            for empty, filled in filled_in.items():
                text = text.replace(empty, filled)
        exec(compile(text, f"cell {name}", "exec"), names)

    assert installed == [[sys.executable, "-m", "pip", "install", "--quiet", "awcl_jax @ git+ssh://ADDRESS"]]
    assert [str(path) for path in shown[:4]] == [
        f"runs/fine/{name}.png" for name in ("loss", "pairs", "views", "embeddings")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in shown)
    assert set(names["results"]) == {"fine", "coarse", "scan", "simclr"}
    table = capsys.readouterr().out.split("macro-F1      kNN")[1].splitlines()
    assert [line.split()[0] for line in table[1:6]] == ["untrained", "fine", "coarse", "scan", "simclr"]
    assert names["encode"](names["frames"]).shape == (2, 64)
    own, public = prepared
    assert own == ["folder", "--source=pictures", "--out=data/own"]
    assert public == ["fetal_planes_db", "--out=data/fpdb", "--source=planes"]
    assert json.loads(Path("runs/own/results.json").read_text())["anatomies"] == ["femur", "head"]
    assert [(config.data.path, config.train.steps) for config in real] == [("data/fpdb", 300)]


@pytest.mark.parametrize(("device", "extra"), [("cpu", ""), ("gpu", "[gpu]"), ("tpu", "[tpu]")])
def test_the_extra_of_the_device_is_installed(notebook, monkeypatch, device, extra):
    installed: list = []
    monkeypatch.setattr(subprocess, "check_call", installed.append)
    exec(code_of(notebook)["install"], {"REPOSITORY": "ssh://ADDRESS", "DEVICE": device})
    assert installed[0][-1] == f"awcl_jax{extra} @ git+ssh://ADDRESS"
    if extra:
        assert f'"{extra[1:-1]}": ["jax[' in (NOTEBOOK.parents[1] / "setup.py").read_text()
