"""The cache folder, and users without a home."""

import os
import pwd
from pathlib import Path

import jax
import pytest

from awcl_jax.runtime.cache import cache_folder, keep_compiled_programs
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError

pytestmark = pytest.mark.quick


@pytest.fixture
def homeless(monkeypatch):
    """Make this process that of a container with a random user id: no variables, no entry in the list of users."""
    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_without_a_home_a_cache_that_is_needed_names_the_variable(homeless, monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"cache of datasets: this user has no home folder. Set XDG_CACHE_HOME"):
        cache_folder("datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("datasets") == tmp_path / "awcl_jax" / "datasets"


def test_without_a_home_compiled_programs_are_not_cached(homeless):
    before = jax.config.jax_compilation_cache_dir
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == before
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_without_a_home_a_tilde_is_one_line(homeless, capsys):
    with pytest.raises(SystemExit) as left, exit_on_bad_input():
        Path("~/runs").expanduser()
    assert (left.value.code, capsys.readouterr().err) == (
        1,
        "error: A path begins with ~, and this user has no home folder. Write the path in full or set HOME.\n",
    )
