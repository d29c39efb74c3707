"""How commands exit on bad input."""

import errno
import subprocess
import sys

import pytest

from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError, RunStopped

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (InputError("temperature is positive; got 0."), 1, "error: temperature is positive; got 0."),
        (InputError("two\nlines"), 1, "error: two lines"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 1, "error: Permission denied: /x/y"),
        (OSError("write() failed"), 1, "error: write() failed"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RunStopped("stopped after step 3"), 75, "stopped after step 3"),
    ],
)
def test_one_line_and_a_status(raised, status, said, capsys):
    @exit_on_bad_input()
    def main() -> None:
        raise raised

    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == status
    assert capsys.readouterr() == ("", f"{said}\n")


@pytest.mark.parametrize("fault", [ValueError("ours"), RuntimeError("ours"), KeyError("ours")])
def test_our_faults_keep_their_traceback(fault):
    with pytest.raises(type(fault), match="ours"), exit_on_bad_input():
        raise fault


@pytest.mark.parametrize(
    ("raised", "quoted"),
    [
        (MemoryError("Unable to allocate 9 GiB"), "Unable to allocate 9 GiB"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nmore"), "RESOURCE_EXHAUSTED: Out of memory."),
    ],
)
def test_a_lack_of_memory_is_one_line(raised, quoted, capsys):
    with pytest.raises(SystemExit) as left, exit_on_bad_input():
        raise raised
    assert left.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: Not enough memory ({quoted}). Use a smaller batch or picture")


def test_a_lack_of_threads_is_one_line_and_waits_for_none():
    program = (
        "import threading\n"
        "from awcl_jax.runtime.cli import exit_on_bad_input\n"
        "threading.Thread(target=threading.Event().wait).start()\n"  # as of a library, which never ends
        'with exit_on_bad_input(): raise RuntimeError("can\'t start new thread")\n'
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: No thread can be started. Raise the limit of processes (`ulimit -u`")


def test_the_result_passes_through_every_time():
    @exit_on_bad_input()
    def double(x: int) -> int:
        return 2 * x

    assert [double(1), double(2)] == [2, 4]


def test_a_reader_that_leaves_is_no_traceback():
    program = (
        "from awcl_jax.runtime.cli import exit_on_bad_input\n"
        "with exit_on_bad_input():\n"
        "    for _ in range(100_000): print('frame')\n"
    )
    command = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    command.stdout.readline()
    command.stdout.close()
    assert command.stderr.read() == b""
    assert command.wait() == 1
    command.stderr.close()
