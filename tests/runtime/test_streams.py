"""Commands whose output is closed, or on a full disk."""

import select
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

_COMMAND = """
import os, sys
from awcl_jax.runtime import child_process
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError
with exit_on_bad_input():
    child_process.continue_in_child()
    for _ in range(3):
        print("x" * 10_000, flush=True)
        print("progress", file=sys.stderr, flush=True)
    with open(sys.argv[1], "w") as file:
        file.write("saved")
        os.write(1, b"printed by a library")
        os.write(2, b"printed by a library")
    if sys.argv[2:]:
        raise InputError("bad")
"""


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("bad", [[], ["bad"]])
def test_closed_streams_change_neither_the_work_nor_the_status(tmp_path, redirect, bad):
    out = tmp_path / "out"
    shell = ["sh", "-c", f'exec "$@" {redirect}', "sh"]
    done = subprocess.run(
        [*shell, sys.executable, "-c", _COMMAND, str(out), *bad], stdout=subprocess.DEVNULL, timeout=60, check=False
    )
    assert (done.returncode, out.read_text()) == (len(bad), "saved")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_under_the_output_drops_it(tmp_path, stream):
    # The library's own line would fail in the program that writes it by the number.
    command = _COMMAND.replace("        os.write", "        print")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", command, str(tmp_path / "out")],
            **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: full},
            timeout=60,
            check=False,
        )
    assert (done.returncode, (tmp_path / "out").read_text()) == (0, "saved")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_each_line_is_there_at_once(monkeypatch, unbuffered):
    """With PYTHONUNBUFFERED set, too, as in many containers."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    command = """
import sys
from awcl_jax.runtime.cli import exit_on_bad_input
with exit_on_bad_input():
    print("first")
    sys.stdin.read()
    print("last")
"""
    with subprocess.Popen([sys.executable, "-c", command], stdin=-1, stdout=-1, text=True) as child:
        assert select.select([child.stdout], [], [], 60)[0]
        assert child.stdout.readline() == "first\n"
        assert child.communicate(timeout=60)[0] == "last\n"
