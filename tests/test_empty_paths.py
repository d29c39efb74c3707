"""An empty path, as a shell makes of a variable that is not set, would mean the working folder."""

import pytest

from awcl_jax.embed import command as embed
from awcl_jax.export import command as export
from awcl_jax.ingest import command as ingest
from awcl_jax.report import command as report
from awcl_jax.reproduce import command as reproduce

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (embed, ["run", "pictures"]),
        (export, ["run"]),
        (ingest, ["phantom"]),
        (report, ["run"]),
        (reproduce, ["--preset=phantom-small"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_empty_out_is_refused_before_anything_is_written(command, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        command.main([*arguments, "--out="])
    assert left.value.code == 1
    assert capsys.readouterr().err == "error: --out must not be empty. Name a file or folder; . is this folder.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "arguments", "name"),
    [
        (embed, ["", "pictures", "--out=f.csv"], "ENCODER"),
        (embed, ["run", " ", "--out=f.csv"], "SOURCE"),
        (embed, ["run", "pictures", "--out=f.csv", "--picture="], "--picture"),
        (embed, ["run", "pictures", "--out=f.csv", "--projector="], "--projector"),
        (export, ["", "--out=e"], "RUN"),
        (report, ["run", ""], "RUN"),
        (reproduce, ["--out=s", "--imagenet="], "--imagenet"),
        (ingest, ["hc18", "--out=d", "--source="], "--source"),
        (ingest, ["fetal_planes_db", "--out=d", "--source=s", "--csv="], "--csv"),
        (ingest, ["fetal_head_biometry", "--out=d", "--source=s", "--masks="], "--masks"),
        (ingest, ["ultrabench", "--out=d", "--source=s", "--patients= "], "--patients"),
        (ingest, ["resplit", "--out=d", "--dataset="], "--dataset"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_empty_path_is_refused_by_its_name(command, arguments, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        command.main(arguments)
    assert left.value.code == 1
    assert capsys.readouterr().err == f"error: {name} must not be empty. Name a file or folder; . is this folder.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["source", "labels", "taxonomy", "key_file"])
def test_an_empty_path_to_own_scans_is_refused_by_its_flag(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        ingest.main(["folder", "--out=d", "--source=s", f"--{flag}="])
    assert left.value.code == 2
    assert f"argument --{flag}: must not be empty; name a file or folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
