"""The last line of a process that dies without an error of its own."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from awcl_jax.runtime import child_process

RESUME = "Rerun the same command to resume from the last checkpoint."


def started(work: str) -> subprocess.Popen:
    """Start a program that does its work in a child process, and prints the child's id."""
    program = (
        "import os, signal, sys, time\n"
        "from awcl_jax.runtime import child_process\n"
        "child_process.continue_in_child()\n"
        "print(os.getpid(), flush=True)\n"
        f"{work}\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", program], **pipes)


@pytest.mark.parametrize("status", [0, 1, 75])
def test_the_status_is_that_of_the_work(status):
    running = started(f"sys.exit({status})")
    output, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (status, "")
    assert int(output) != running.pid


@pytest.mark.parametrize(
    ("work", "number", "cause"),
    [
        (
            "os.abort()",
            signal.SIGABRT,
            "SIGABRT (JAX aborts a process when another process of the run is lost or stops responding)",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", signal.SIGKILL, "SIGKILL (probably out of memory)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", signal.SIGSEGV, "SIGSEGV"),
    ],
)
def test_a_death_is_reported_in_one_line(work, number, cause):
    running = started(work)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert errors == f"error: Killed by {cause}. {RESUME}\n"


LOST = (
    "E1129 20:06:46.450144    4247 coordination_service_agent.cc:289] Polled an error from coordination service.\n"
    "F1129 20:06:46.450277    4247 client.h:80] Terminating process because the JAX distributed service detected\n"
)

CANCELLED = (
    "E1129 21:42:25.798342   14759 preemption_sync_manager.cc:159] Failed to cancel preemption barrier: "
    "FAILED_PRECONDITION: Tried to cancel non-existent barrier PREEMPTION_SYNC_BARRIER.\n"
)
ERROR = "error: Another process of the run was lost (UNAVAILABLE). Rerun.\n"


@pytest.mark.parametrize("pause", [0, 0.05])
@pytest.mark.parametrize(
    ("printed", "end", "status", "wanted"),
    [
        (LOST, "os.abort()", 134, "\\rstep 3\nerror: Killed by SIGABRT .*\n"),
        (LOST, "os._exit(134)", 134, "\\rstep 3\n"),
        (ERROR + CANCELLED, "os._exit(134)", 134, "\\rstep 3" + re.escape(ERROR)),
        (CANCELLED.replace("E1", "W1", 1) + ERROR, "os._exit(134)", 134, "\\rstep 3\n" + re.escape(ERROR)),
        (LOST + ERROR, "os._exit(134)", 134, "\\rstep 3\n" + re.escape(ERROR)),
        (LOST, "os._exit(0)", 0, "\\rstep 3\n" + re.escape(LOST) + "end\n"),
        (
            "F1129 20:06:46.4 42 cpu.cc:8] Check failed\n",
            "os.abort()",
            134,
            "\\rstep 3F.*Check failed\nend\nerror: .*\n",
        ),
    ],
)
def test_the_page_of_an_abort_by_jax_is_left_out(printed, end, status, wanted, pause):
    lines = [b"\rstep 3", *(line.encode() for line in printed.splitlines(keepends=True)), b"end\n"]
    work = "child_process.leave_page_to_parent()\n"
    work += f"for text in {lines}:\n    os.write(2, text); time.sleep({pause})\n{end}"
    running = started(work)
    errors = os.fdopen(os.dup(running.stderr.fileno()), newline="").read()
    assert running.wait(timeout=60) == status
    assert re.fullmatch(wanted, errors), errors


def test_a_process_that_the_work_has_started_does_not_delay_the_end():
    work = (
        "import subprocess; child_process.leave_page_to_parent()\n"
        "subprocess.Popen(['sleep', '60'], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL); sys.exit(3)"
    )
    assert started(work).wait(timeout=40) == 3


def test_sigterm_reaches_the_work():
    work = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('ready', flush=True); time.sleep(60)"
    running = started(work)
    assert running.stdout.readline()
    assert running.stdout.readline() == "ready\n"
    running.terminate()
    assert (running.wait(timeout=60), running.stderr.read()) == (75, "")


def test_a_stream_of_sigterms_leaves_the_status_of_the_work():
    # Until this process is gone, which it is some time after its child.
    work = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True); time.sleep(0.3); os._exit(75)"
    running = started(work)
    assert running.stdout.readline()
    assert running.stdout.readline() == "ready\n"
    while running.poll() is None:
        running.terminate()
        time.sleep(0.001)
    assert (running.returncode, running.stderr.read()) == (75, "")


def test_a_signal_for_a_child_that_is_gone_is_no_error(monkeypatch):
    # The parent's part alone: its child has exited when the signal arrives.
    handlers, exits = {}, []
    monkeypatch.setattr(os, "fork", lambda: 2**22 + 1)  # no process has this id
    monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.setdefault(number, []).append(handler))

    def exited(*_):
        handlers[signal.SIGTERM][0](signal.SIGTERM, None)
        return 0, 75 << 8

    monkeypatch.setattr(os, "waitpid", exited)
    monkeypatch.setattr(os, "_exit", exits.append)
    child_process.continue_in_child()
    assert exits == [75]
    assert handlers[signal.SIGTERM][-1] is signal.SIG_IGN


def test_ctrl_c_is_left_to_the_work():
    work = "signal.signal(signal.SIGINT, lambda *_: sys.exit(3)); print('ready', flush=True); time.sleep(60)"
    running = started(work)
    child = int(running.stdout.readline())
    assert running.stdout.readline() == "ready\n"
    # A terminal sends it to both.
    running.send_signal(signal.SIGINT)
    os.kill(child, signal.SIGINT)
    assert (running.wait(timeout=60), running.stderr.read()) == (3, "")


def test_the_work_ends_with_its_parent():
    running = started("time.sleep(60)")
    assert running.stdout.readline()
    running.kill()
    running.wait()
    assert running.stdout.read() == ""  # which ends when no process has it open any more


ASKED = """
import sys, time
from pathlib import Path
from awcl_jax.runtime import child_process
request = child_process.read_request()
Path(request["out"]).write_text(str(request["number"] + 1))
time.sleep(request["seconds"])
Path(request["out"]).write_text("not ended")
sys.exit(request["status"])
"""
ASKS = """
import sys
from awcl_jax.runtime import child_process
print(child_process.run_to_end("asked", {request}), flush=True)
"""


def asks(folder, **request) -> subprocess.Popen:
    """Start a program that runs another one to its end."""
    (folder / "asked.py").write_text(ASKED)
    request = {"out": str(folder / "out"), "number": 1, "seconds": 0, "status": 0} | request
    path = os.pathsep.join([str(folder), *sys.path])
    program = ASKS.format(request=request)
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("status", [0, 3])
def test_a_request_is_read_and_its_success_known(tmp_path, status):
    output, _ = asks(tmp_path, status=status).communicate(timeout=60)
    assert (output, (tmp_path / "out").read_text()) == (f"{status == 0}\n", "not ended")


def test_what_was_asked_ends_with_who_asked(tmp_path):
    running = asks(tmp_path, seconds=3)
    while not (tmp_path / "out").is_file():
        time.sleep(0.01)
    running.kill()
    running.wait()
    time.sleep(4)
    assert (tmp_path / "out").read_text() == "2"
