"""How the processes of a run connect, and how they stop together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from awcl_jax.runtime import multihost
from awcl_jax.runtime.errors import InputError

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]
LAUNCHERS = ("SLURM_", "OMPI_", "KUBERNETES_", "JAX_COORDINATOR", "TPU_", "JOB_COMPLETION_INDEX")


@pytest.fixture
def started(monkeypatch):
    """Return the arguments of each call of `jax.distributed.initialize`, which starts nothing."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


@pytest.fixture
def no_launcher(monkeypatch):
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)


def test_three_flags_are_taken_as_they_are(started):
    multihost.join(coordinator="host:8476", processes=4, process=0, heartbeat=7)
    options = {"cluster_detection_method": "deactivate", "heartbeat_timeout_seconds": 7}
    assert started == [(("host:8476", 4, 0), options)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"heartbeat": 0}, r"--heartbeat must be from 1 to 86,400 seconds \(a day\); got 0"),
        ({"heartbeat": 86_401}, "--heartbeat must be from 1 to 86,400 seconds.*got 86401"),
        ({"heartbeat": 10**11, "processes": 1}, "--heartbeat must be .*; got 100000000000"),
        ({"coordinator": "host:1"}, "Pass --coordinator=HOST:PORT, --processes=N and --process=I together"),
        ({"processes": 2}, "Pass --coordinator=HOST:PORT, --processes=N and --process=I together"),
        ({"process": 0}, "Pass --coordinator=HOST:PORT, --processes=N and --process=I together"),
        (
            {"coordinator": "host:1", "processes": 2},
            "Pass --coordinator=HOST:PORT, --processes=N and --process=I together",
        ),
        ({"processes": 1, "process": 0}, "Pass --coordinator=HOST:PORT, --processes=N and --process=I together"),
        ({"coordinator": "host", "processes": 2, "process": 0}, "HOST:PORT.*'host'"),
        ({"coordinator": ":1", "processes": 2, "process": 0}, "HOST:PORT"),
        ({"coordinator": "host:port", "processes": 2, "process": 0}, "HOST:PORT"),
        ({"coordinator": "host:0", "processes": 2, "process": 0}, "from 1 to 65535; got 0"),
        ({"coordinator": "host:65536", "processes": 2, "process": 1}, "from 1 to 65535; got 65536"),
        ({"coordinator": f"host:{'9' * 5000}", "processes": 2, "process": 1}, "from 1 to 65535; got 9{20}[.]"),
        ({"coordinator": "host:1", "processes": 2, "process": 2}, "below --processes=2; got 2"),
        ({"coordinator": "host:1", "processes": 2, "process": -1}, "got -1"),
        ({"coordinator": "host:1", "processes": 0, "process": 0}, "--processes must be from 1 to 100,000; got 0"),
        ({"coordinator": "host:1", "processes": 2**31, "process": 0}, "--processes must be .*; got 2147483648"),
        ({"coordinator": "http://host:1", "processes": 2, "process": 0}, "HOST:PORT.*'http://host:1'"),
        ({"coordinator": "my host:1", "processes": 2, "process": 1}, "HOST:PORT.*'my host:1'"),
    ],
    ids=str,
)
def test_flags_that_do_not_fit_are_refused(flags, message, started):
    with pytest.raises(InputError, match=message) as caught:
        multihost.join(**flags)
    assert "\n" not in str(caught.value)
    assert started == []


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1"])
def test_a_port_in_use_is_one_line_before_jax_starts(started, address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        other = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip("this machine has no such address")
    with other:
        port = other.getsockname()[1]
        flags = {"coordinator": f"host:{port}", "processes": 2}
        with pytest.raises(InputError, match=f"cannot listen on port {port} of --coordinator=host:{port} .*in use"):
            multihost.join(**flags, process=0)
        assert started == []
        multihost.join(**flags, process=1)  # only process 0 listens
        assert len(started) == 1


def test_one_process_asks_no_launcher(started):
    multihost.join(processes=1)
    assert started == []


def test_a_process_alone_in_its_slurm_step_keeps_all_gpus(started, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node1")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    multihost.join()
    assert started == []
    monkeypatch.setenv("SLURM_NTASKS", "2")
    multihost.join()
    assert started == [((), {"heartbeat_timeout_seconds": 100})]


@pytest.mark.parametrize("value", ["SLURM_NTASKS", "KUBERNETES_SERVICE_HOST"])
def test_without_a_launcher_nothing_happens(no_launcher, monkeypatch, value, recwarn):
    # In a pod without the package, and in a job's script outside of srun, there is no other process.
    monkeypatch.setenv(value, "1")
    # JAX refuses the call in a process that has computed; here it must get to asking the launchers.
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    multihost.join()
    assert not jax.distributed.is_initialized()
    assert not list(recwarn)


@pytest.mark.parametrize("error", [RuntimeError("Kubernetes API Error: 403\nmore"), KeyError("job-name"), ValueError()])
def test_a_failing_launcher_is_one_line_with_the_fix(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(InputError, match=r"cannot connect .*--processes=1 for a single process") as caught:
        multihost.join()
    assert "\n" not in str(caught.value)


def test_alone_a_block_ends_as_it_ends():
    with multihost.all_or_none():
        pass
    for error in (InputError("bad"), PermissionError("closed")):
        with pytest.raises(type(error), match=str(error)), multihost.all_or_none():
            raise error
    assert multihost.first()
    assert multihost.agreed(7) == 7


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])
def test_bad_input_is_reported_where_another_process_is_lost_too(kind, monkeypatch):
    def lost(*_):
        raise kind("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost.multihost_utils, "process_allgather", lost)
    with pytest.raises(InputError, match=r"^bad$"), multihost.all_or_none():
        raise InputError("bad")
    with pytest.raises(kind, match="by peer"), multihost.all_or_none():
        pass


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("UNKNOWN: Gloo AllGather failed: [pair.cc:538] Read error [::1]:53: Connection reset by peer\nmore", True),
        ("UNAVAILABLE: Failed to send RPC to coordination service.", True),
        ("INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited or there was a network error", True),
        ("DEADLINE_EXCEEDED: Barrier timed out.", True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.", False),
        ("INVALID_ARGUMENT: shapes differ", False),
    ],
)
@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])
def test_the_loss_of_another_process_is_one_line_with_its_own_status(kind, text, lost, monkeypatch, capsys):
    class Exited(BaseException):
        pass

    def leave(status):
        raise Exited(status)

    monkeypatch.setattr(os, "_exit", leave)
    for together in (True, False):
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda together=together: together)
        ending = Exited if together and lost else kind
        with pytest.raises(ending) as caught, multihost.loss_in_words():
            raise kind(text)
        if ending is Exited:
            assert caught.value.args == (134,)
            assert capsys.readouterr().err == (
                f"error: Another process of the run was lost ({text.splitlines()[0]}). Rerun the same command on all "
                "hosts to resume from the last checkpoint.\n"
            )
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("cause", "lost"), [(ValueError("Gloo: closed by peer"), True), (KeyError("peer"), False)])
def test_a_loss_behind_the_error_of_a_library(cause, lost, monkeypatch):
    class Exited(BaseException):
        pass

    def leave(status):
        raise Exited(status)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(Exited if lost else RuntimeError), multihost.loss_in_words():
        raise RuntimeError("could not save") from cause
    with pytest.raises(InputError), multihost.loss_in_words():
        raise InputError("The connection was closed by peer.")


_PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
from awcl_jax.runtime import multihost
from awcl_jax.runtime.errors import InputError
me = int(sys.argv[2])
multihost.join(coordinator=f"localhost:{sys.argv[1]}", processes=2, process=me)
report = [f"first {multihost.first()}", f"agreed {multihost.agreed(40 + me)}"]
for stopping in ({}, {1}, {0, 1}):
    try:
        with multihost.all_or_none():
            if me in stopping:
                raise InputError(f"bad on {me}")
        report.append("went on")
    except InputError as error:
        report.append(str(error))
import json
for values in ({"config.seed": 0}, {"config.seed": me, "config.name": "fine"}, {"x" * (me + 1): 1, "config.seed": 0}):
    try:
        multihost.require_same(values)
        report.append("alike")
    except InputError as error:
        report.append(str(error))
multihost.source_digest = lambda: f"code {me}"
try:
    multihost.require_same({})
except InputError as error:
    report.append(str(error))
print("\\n" + json.dumps(report))
"""


@pytest.mark.slow
def test_two_processes_agree_and_stop_as_one(unused_port):
    commands = [[sys.executable, "-c", _PROCESS, str(unused_port), str(process)] for process in (0, 1)]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    outputs = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    report = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    other = "Process 1 of 2 failed. See its error."
    assert report[0][:5] == ["first True", "agreed 40", "went on", other, "bad on 0"]
    assert report[1][:5] == ["first False", "agreed 40", "went on", "bad on 1", "bad on 1"]
    end = "). Start all with the same command and the same version of the code."
    assert report[0][5:] == report[1][5:]
    assert report[0][5:] == [
        "alike",
        f"Process 1 differs from process 0 (config.seed 1 and not 0{end}",
        f"Process 1 differs from process 0 (x None and not 1, xx 1 and not None{end}",
        f"Process 1 differs from process 0 (awcl_jax 'code 1' and not 'code 0'{end}",
    ]


_ALONE = """
import sys
from awcl_jax.runtime import multihost
from awcl_jax.runtime.cli import exit_on_bad_input
multihost._PATIENCE = 2
with exit_on_bad_input():
    multihost.join(coordinator=f"localhost:{sys.argv[1]}", processes=2, process=int(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_alone_reports_where_and_how_long_it_waited(process, unused_port):
    command = [sys.executable, "-c", _ALONE, str(unused_port), str(process)]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"cannot connect at localhost:{unused_port} (no answer within 2 s)" in line
