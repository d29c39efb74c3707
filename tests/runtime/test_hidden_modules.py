"""Modules hidden from an imported library."""

import subprocess
import sys

from awcl_jax.runtime.hidden_modules import hidden


def test_a_hidden_module_is_found_again(tmp_path, monkeypatch):
    (tmp_path / "heavy.py").write_text("loaded = True")
    (tmp_path / "light.py").write_text("try:\n    import heavy\nexcept ImportError:\n    heavy = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    with hidden("heavy"):
        import light
    assert light.heavy is None
    assert "heavy" not in sys.modules
    import heavy

    assert heavy.loaded


def test_an_imported_module_stays():
    with hidden("subprocess"):
        import subprocess as again
    assert again is subprocess


def test_a_run_does_not_import_pytorch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import awcl_jax.downstream.runner, awcl_jax.pretrain.runner"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
