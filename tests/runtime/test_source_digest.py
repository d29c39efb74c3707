"""The digest of the sources: another one for whatever a module says or is called."""

from types import ModuleType

import pytest

import awcl_jax
from awcl_jax.runtime.source_digest import source_digest

pytestmark = pytest.mark.quick


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "room").mkdir()
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "room/one.py").write_text("x = 1\n")
    monkeypatch.setattr(awcl_jax, "__file__", str(tmp_path / "__init__.py"))
    return tmp_path


def test_a_content_or_a_name_makes_another(package):
    found = {source_digest()}
    (package / "room/one.py").write_text("x = 2\n")
    found.add(source_digest())
    (package / "room/one.py").rename(package / "room/other.py")
    found.add(source_digest())
    assert len(found) == 3


def test_of_some_modules_the_others_do_not_count(package):
    some = ModuleType("awcl_jax.room.one")
    some.__file__ = str(package / "room/one.py")
    (package / "other.py").write_text("y = 1\n")
    before = source_digest(some), source_digest()
    (package / "other.py").write_text("y = 2\n")
    assert source_digest(some) == before[0]
    assert source_digest() != before[1]
    (package / "room/one.py").write_text("x = 2\n")
    assert source_digest(some) != before[0]


def test_what_is_no_module_does_not_count(package):
    before = source_digest()
    (package / "room/.#one.py").symlink_to("nobody@nowhere")  # of an editor in which the file is open
    (package / "room/page.html").write_text("")
    assert source_digest() == before
