"""`--out=`, as a shell makes of a variable that is not set, would mean the working folder."""

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
