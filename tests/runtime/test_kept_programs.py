"""Programs kept between runs: found again, and never another's, a changed or a damaged one."""

import os
import subprocess
import sys

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.runtime import kept_programs

NAME = {"program": "double", "of": {"config": "a"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache, and a process that has loaded nothing yet."""
    monkeypatch.setattr(kept_programs, "_of_this_process", {})
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path / "whole"
    jax.config.update("jax_compilation_cache_dir", before)


def devices():
    return jax.devices()[:1]


def double(tree):
    return {"twice": 2 * tree["x"], "rows": tree["rows"] + 1}


def arguments():
    return {"x": jnp.arange(4.0), "rows": jnp.arange(3)}


def lowered():
    """The program, of a function that JAX has not seen: it is compiled, not found in this process's memory."""
    return jax.jit(lambda tree: double(tree), donate_argnums=0).lower(arguments())


def kept(name=NAME):
    """Compile and keep a program, and forget it in this process; return its file."""
    kept_programs.load_or_compile(name, devices(), lowered)
    kept_programs._of_this_process.clear()
    (file,) = kept_programs._folder().iterdir()
    return file


def test_a_later_start_gets_the_program_without_tracing_it(folder):
    kept()
    given = arguments()
    found = kept_programs.load_or_compile(NAME, devices(), lambda: pytest.fail("traced again"))(given)
    np.testing.assert_array_equal(found["twice"], [0, 2, 4, 6])
    assert found["rows"].tolist() == [1, 2, 3]
    assert given["x"].is_deleted()  # donated, as to the program that was kept


def test_only_its_user_can_read_and_write_it(folder):
    file = kept()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("place", [0, 40, 100, -1])
def test_a_changed_byte_anywhere_is_another_file(folder, place):
    file = kept()
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    assert kept_programs.load(NAME, devices()) is None


def test_half_a_file_is_none(folder):
    file = kept()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert kept_programs.load(NAME, devices()) is None


def test_a_program_under_the_name_of_another_is_not_run(folder):
    file = kept()
    other = {**NAME, "of": {"config": "b"}}
    assert kept_programs.load(other, devices()) is None
    file.rename(file.with_name(kept_programs._file_name(kept_programs._key(other, devices()))))
    assert kept_programs.load(other, devices()) is None


@pytest.mark.parametrize("which", ["file", "folder"])
def test_what_others_can_write_is_not_run(folder, which):
    file = kept()
    (file if which == "file" else file.parent).chmod(0o777)
    assert kept_programs.load(NAME, devices()) is None


def test_what_another_user_owns_is_not_run(folder, monkeypatch):
    kept()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert kept_programs.load(NAME, devices()) is None


def test_a_link_is_not_followed(folder):
    file = kept()
    target = file.rename(folder.parent / "elsewhere")
    file.symlink_to(target)
    assert kept_programs.load(NAME, devices()) is None


def change_sources(monkeypatch):
    python, _, versions = kept_programs._this_installation()
    monkeypatch.setattr(kept_programs, "_this_installation", lambda: (python, "of other sources", versions))


def change_version(monkeypatch):
    python, sources, versions = kept_programs._this_installation()
    monkeypatch.setattr(kept_programs, "_this_installation", lambda: (python, sources, {**versions, "jax": "9"}))


def change_processor(monkeypatch):
    monkeypatch.setattr(kept_programs, "_processor", lambda: ("another machine", [], 2))


def change_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_cpu_enable_fast_math=true")


def change_precision(monkeypatch):
    values = {**jax.config.values, "jax_default_matmul_precision": "highest"}
    monkeypatch.setattr(type(jax.config), "values", values)


@pytest.mark.parametrize(
    "change",
    [change_sources, change_version, change_processor, change_flags, change_precision],
    ids=lambda f: f.__name__,
)
def test_a_program_of_other_circumstances_is_not_run(folder, monkeypatch, change):
    kept()
    assert kept_programs.load(NAME, devices()) is not None
    kept_programs._of_this_process.clear()
    change(monkeypatch)
    assert kept_programs.load(NAME, devices()) is None


def test_other_devices_are_other_programs(folder):
    kept()
    assert kept_programs.load(NAME, jax.devices()[1:2]) is None


def test_the_oldest_are_deleted(folder, monkeypatch):
    first = kept()
    monkeypatch.setattr(kept_programs, "_MOST", 2)
    for number in range(2):
        os.utime(first, (number, number))
        kept_programs.load_or_compile({"number": number}, devices(), lowered)
    assert len(list(folder.iterdir())) == 2
    assert not first.exists()


def test_a_program_that_is_used_is_not_old(folder):
    file = kept()
    os.utime(file, (1, 1))
    assert kept_programs.load(NAME, devices(), once=True) is not None
    assert file.stat().st_mtime > 1e9


def test_sources_that_were_edited_since_they_were_read_keep_nothing(folder, monkeypatch):
    """The program is of what this process imported, and would be found by what is on disk."""
    monkeypatch.setattr(kept_programs, "source_digest", lambda: "of an edited file")
    kept_programs.load_or_compile(NAME, devices(), lowered)
    assert not folder.exists()


def test_sources_that_are_gone_do_not_end_a_run(folder, monkeypatch):
    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(kept_programs, "source_digest", gone)
    program = kept_programs.load_or_compile(NAME, devices(), lowered)
    assert program(arguments())["rows"].tolist() == [1, 2, 3]
    assert not folder.exists()


def test_a_process_holds_the_last_programs_only(folder, monkeypatch):
    monkeypatch.setattr(kept_programs, "_MOST_LOADED", 2)
    first, *last = [kept_programs.load_or_compile({"number": number}, devices(), lowered) for number in range(3)]
    assert [kept_programs.load({"number": number}, devices()) for number in (1, 2)] == last
    assert kept_programs.load({"number": 0}, devices()) not in (None, first)  # read again


def test_a_program_that_is_loaded_again_stays(folder, monkeypatch):
    monkeypatch.setattr(kept_programs, "_MOST_LOADED", 2)
    made = [kept_programs.load_or_compile({"number": number}, devices(), lowered) for number in range(2)]
    assert kept_programs.load({"number": 0}, devices()) is made[0]
    kept_programs.load_or_compile({"number": 2}, devices(), lowered)
    assert kept_programs.load({"number": 0}, devices()) is made[0]


def test_a_program_that_runs_once_is_let_go(folder):
    made = kept_programs.load_or_compile(NAME, devices(), lowered, once=True)
    read = kept_programs.load(NAME, devices(), once=True)
    assert read not in (None, made)
    assert not kept_programs._of_this_process
    np.testing.assert_array_equal(read(arguments())["twice"], [0, 2, 4, 6])


def test_without_a_folder_it_compiles(monkeypatch, tmp_path):
    monkeypatch.setattr(kept_programs, "_folder", lambda: None)
    program = kept_programs.load_or_compile(NAME, devices(), lowered)
    assert program(arguments())["rows"].tolist() == [1, 2, 3]


def test_a_full_disk_does_not_end_a_run(folder, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_programs.Path, "write_bytes", full)
    program = kept_programs.load_or_compile(NAME, devices(), lowered)
    assert program(arguments())["rows"].tolist() == [1, 2, 3]
    assert not list(folder.iterdir())


def test_a_program_that_jax_read_from_its_cache_is_not_kept(folder, monkeypatch):
    """XLA would write it without its kernels: it loads, and then fails when it runs."""

    class Read:
        def compile(self):
            jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
            return lowered().compile()

    program = kept_programs.load_or_compile(NAME, devices(), Read)
    assert program(arguments())["rows"].tolist() == [1, 2, 3]
    assert not folder.exists()


def test_a_program_that_jax_holds_in_memory_is_not_kept(folder):
    """It may have been read when it came there; nothing tells, then, that it was."""
    program = lowered()
    program.compile()
    kept_programs.load_or_compile(NAME, devices(), lambda: program)
    assert not folder.exists()


def test_programs_that_jax_has_read_are_not_kept_or_run(tmp_path):
    """Each process asks for one program by two names; JAX reads it for the first name, and holds it for the second.

    The cache is empty at first. The program has kernels of its own, without which it fails when it runs.
    """
    program = """
import jax, jax.numpy as jnp, sys
from awcl_jax.runtime import kept_programs
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
run = jax.jit(lambda x: jnp.cumsum(jnp.tanh(x) + x[::-1]))
for number in sys.argv[2:] * 2:
    name = {"number": number}
    made = kept_programs.load_or_compile(name, jax.devices(), lambda: run.lower(jnp.arange(64.0)), once=True)
    made(jnp.arange(64.0)).block_until_ready()
print(len(list(kept_programs._folder().glob("*"))))
"""
    counts = []
    for names in (["first"], ["second", "third"]):
        command = [sys.executable, "-c", program, str(tmp_path), *names]
        counts.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert counts == [1, 1]


def test_another_process_is_asked_once(folder):
    asked = []
    for _ in range(2):
        kept_programs.compile_aside(NAME, devices(), lambda: asked.append(kept()))
    assert len(asked) == 1
