"""Launching on clusters: what the scripts would do, valid manifests, and two processes started by each."""

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from awcl_jax.train.metrics import read_metrics

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = ("tpu_vm.sh", "slurm.sbatch", "kubernetes.sh")
TPU = {
    "TPU_NAME": "awcl",
    "ZONE": "here",
    "ACCELERATOR": "v5litepod-16",
    "RUNTIME": "image",
    "REPOSITORY": "https://x/y",
}
PODS = {"NAME": "awcl", "NODES": "2", "CLAIM": "shared", "REPOSITORY": "https://x/y?a&b"}
GPUS = PODS | {"GPUS": "8"}
CHIPS = PODS | {"CHIPS": "4", "ACCELERATOR": "tpu-v5-lite-podslice", "TOPOLOGY": "2x4"}
RUN = ("--config=configs/fine.py", "--workdir=/mnt/awcl/runs/fine")


def script(name: str, *arguments: str, cwd: Path = ROOT, path: Path | None = None, **variables: str):
    """Run a script with only these variables in the environment."""
    environment = {"PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"], "HOME": str(cwd)} | variables
    command = ["bash", str(LAUNCH / name), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def dry(name: str, *arguments: str, **variables: str) -> str:
    done = script(name, *arguments, DRY_RUN="1", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def commands(output: str) -> list[list[str]]:
    return [shlex.split(line) for line in output.splitlines()]


def program(folder: Path, name: str, text: str) -> Path:
    """Write a program that replaces one of a cluster."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name):
    beside = Path(sys.executable).with_name("shellcheck")
    checker = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert checker, "install the extra `test`"
    done = subprocess.run([checker, "--shell=bash", str(LAUNCH / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert os.access(LAUNCH / name, os.X_OK)


@pytest.mark.parametrize(
    ("name", "arguments", "variables", "missing"),
    [
        ("tpu_vm.sh", ("create",), TPU, "TPU_NAME"),
        ("tpu_vm.sh", ("delete",), TPU, "ZONE"),
        ("tpu_vm.sh", ("create",), TPU, "ACCELERATOR"),
        ("tpu_vm.sh", ("create",), TPU, "RUNTIME"),
        ("tpu_vm.sh", ("setup",), TPU, "REPOSITORY"),
        ("tpu_vm.sh", ("keep", *RUN), TPU, "NFS"),
        *(("kubernetes.sh", ("gpu", *RUN), GPUS, name) for name in GPUS),
        *(("kubernetes.sh", ("tpu", *RUN), CHIPS, name) for name in CHIPS),
    ],
)
def test_a_missing_variable_is_named_before_anything_starts(name, arguments, variables, missing, tmp_path):
    path = program(tmp_path, "gcloud", "#!/bin/sh\necho called")
    program(tmp_path, "kubectl", "#!/bin/sh\necho called")
    given = {key: value for key, value in variables.items() if key != missing}
    done = script(name, *arguments, path=path, **given)
    assert done.returncode != 0
    assert missing in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("name", "arguments", "variables", "said"),
    [
        ("tpu_vm.sh", ("run",), TPU, "--config=configs/fine.py"),
        ("tpu_vm.sh", ("setpu",), TPU, "unknown verb setpu"),
        ("kubernetes.sh", ("gpuu", *RUN), GPUS, "unknown kind gpuu"),
        ("tpu_vm.sh", ("keep", "--config=a", "--workdir=runs/a"), TPU | {"NFS": "h:/s"}, "--workdir=/mnt/awcl/..."),
        ("kubernetes.sh", ("gpu", "--config=a", "--workdir=runs/a"), GPUS, "--workdir=/mnt/awcl/..."),
        ("slurm.sbatch", (), {}, "--config=configs/fine.py"),
        ("slurm.sbatch", ("--config=configs/fine.py",), {}, "no Slurm job"),
    ],
)
def test_arguments_that_cannot_work_are_refused(name, arguments, variables, said, tmp_path):
    program(tmp_path, "gcloud", "#!/bin/sh\necho called")
    done = script(name, *arguments, path=tmp_path, **variables)
    assert done.returncode != 0
    assert said in done.stderr
    assert done.stdout == ""


def test_a_run_is_named_with_a_blank_as_well_as_with_a_sign():
    given = ("--config", "configs/fine.py", "--workdir", "/mnt/awcl/runs/fine")
    training = commands(dry("tpu_vm.sh", "keep", *given, **TPU, NFS="h:/s"))[-1]
    assert any("awcl_jax.main --config configs/fine.py --workdir /mnt/awcl/runs/fine" in word for word in training)
    dry("kubernetes.sh", "gpu", *given, **GPUS)


def test_an_address_reaches_git_as_it_is(tmp_path):
    (line,) = commands(dry("tpu_vm.sh", "setup", **TPU | {"REPOSITORY": "https://x/y?a&b c"}))
    (steps,) = (word.removeprefix("--command=") for word in line if word.startswith("--command="))
    program(tmp_path, "git", '#!/bin/sh\nprintf "%s\\n" "$@" > ~/given; exit 1')
    program(tmp_path, "python3", "#!/bin/sh\n")
    here = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    subprocess.run(["bash", "-c", steps], env=here, cwd=tmp_path, check=False, timeout=60)
    assert (tmp_path / "given").read_text().splitlines() == ["clone", "--depth", "1", "https://x/y?a&b c", "awcl"]


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",)])
@pytest.mark.parametrize("name", ["tpu_vm.sh", "kubernetes.sh"])
def test_without_arguments_a_script_explains_itself(name, arguments):
    done = script(name, *arguments)
    assert done.returncode == 0
    assert f"launch/{name}" in done.stdout
    assert "set -euo" not in done.stdout


def test_a_tpu_is_created_on_demand_as_spot_or_through_the_queue():
    create = ["gcloud", "compute", "tpus", "tpu-vm", "create", "awcl", "--version=image", "--zone=here"]
    create += ["--accelerator-type=v5litepod-16"]
    assert commands(dry("tpu_vm.sh", "create", **TPU)) == [create]
    assert commands(dry("tpu_vm.sh", "create", **TPU, SPOT="1")) == [[*create, "--spot"]]
    (queued,) = commands(dry("tpu_vm.sh", "create", **TPU, SPOT="1", QUEUED="1"))
    assert queued[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert {"--node-id=awcl", "--runtime-version=image", "--spot"} <= set(queued)


def test_a_tpu_is_deleted_the_way_it_was_created():
    (plain,) = commands(dry("tpu_vm.sh", "delete", **TPU))
    assert plain == ["gcloud", "compute", "tpus", "tpu-vm", "delete", "awcl", "--zone=here", "--quiet"]
    (queued,) = commands(dry("tpu_vm.sh", "delete", **TPU, QUEUED="1"))
    assert queued[3:6] == ["queued-resources", "delete", "awcl"]
    assert "--force" in queued


def test_keeping_a_tpu_creates_sets_up_and_runs():
    words = commands(dry("tpu_vm.sh", "keep", *RUN, **TPU, NFS="10.0.0.2:/share"))
    assert [line[4] for line in words] == ["create", "ssh", "ssh"]
    setup, run = (next(word for word in line if word.startswith("--command=")) for line in words[1:])
    assert all("--worker=all" in line for line in words[1:])
    assert "git clone --depth 1 https://x/y awcl" in setup
    assert "mount 10.0.0.2:/share /mnt/awcl" in setup
    assert "awcl_jax.main --config=configs/fine.py --workdir=/mnt/awcl/runs/fine" in run


def test_a_tpu_whose_run_is_on_a_bucket_needs_no_shared_disk():
    words = commands(dry("tpu_vm.sh", "keep", "--config=configs/fine.py", "--workdir=gs://b/runs/fine", **TPU))
    setup, run = (next(word for word in line if word.startswith("--command=")) for line in words[1:])
    assert "[tpu,gcs]" in setup
    assert "mount" not in setup
    assert "--workdir=gs://b/runs/fine" in run


# Answers like gcloud: `state` tells of the TPU; what is to run on hosts runs here, in a home of its own.
_GCLOUD = """#!/usr/bin/env bash
echo "$4" >> calls
case $4 in
  create) echo READY > state ;;
  delete) rm state ;;
  describe)
    [[ $(grep -c describe calls) != ${UNANSWERED:-0} ]] || { echo "ERROR: UNAVAILABLE: try again" >&2; exit 1; }
    cat state 2> /dev/null || { echo "ERROR: NOT_FOUND: it was not found" >&2; exit 1; } ;;
  ssh) for word; do case $word in --command=*)
         export HOME=$PWD/host; [[ $word == *'pip install'* ]] || bash -c "${word#--command=}" ;; esac; done ;;
esac
"""
# The first training is taken away with its TPU, the next one is asked to stop and saves, the last one ends.
_TRAINING = """#!/usr/bin/env bash
printf '%s\\n' "$@" > ~/arguments
if [[ -e ~/asked ]]; then echo trained; exit ${ENDS_WITH}; fi
if [[ -e ~/began ]]; then touch ~/asked; exit 75; fi
touch ~/began; echo $$ > ~/lost; echo PREEMPTED > ../../state; exec sleep 600
"""


@pytest.mark.parametrize(("ends_with", "unanswered"), [(0, 0), (1, 0), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (0, 7)])
def test_a_lost_tpu_is_replaced_and_a_failed_training_is_not(ends_with, unanswered, tmp_path):
    """Also where gcloud gives no answer at one of the calls after the first."""
    path = program(tmp_path / "bin", "gcloud", _GCLOUD)
    program(tmp_path / "host" / "awcl" / ".venv" / "bin", "python", _TRAINING.replace("${ENDS_WITH}", str(ends_with)))
    text = '--config.name=it\'s $HOME "a" & b'
    # The training that lost its TPU holds on to the host's lock; a host that is gone does not.
    program(path, "flock", '#!/bin/sh\n[ "$1" = -n ] && exit 0; shift; exec "$@"')
    done = script(
        "tpu_vm.sh",
        "keep",
        *RUN,
        text,
        cwd=tmp_path,
        path=path,
        **TPU,
        NFS="h:/s",
        POLL="0.2",
        UNANSWERED=f"{unanswered}",
    )
    os.kill(int((tmp_path / "host" / "lost").read_text()), signal.SIGKILL)
    calls = (tmp_path / "calls").read_text().split()
    assert [call for call in calls if call in ("create", "delete")] == ["create", "delete", "create"]
    assert done.returncode == ends_with, done.stderr
    assert (tmp_path / "host" / "arguments").read_text().splitlines() == ["-m", "awcl_jax.main", *RUN, text]
    assert (tmp_path / "host" / "awcl.log").read_text() == "trained\n"
    assert ("the training failed, though its hosts exist" in done.stderr) == bool(ends_with)


@pytest.mark.parametrize(
    ("gcloud", "said"),
    [
        (_GCLOUD.replace("${UNANSWERED:-0}", "1"), "gcloud cannot tell of awcl. Check its account, project and ZONE"),
        (_GCLOUD.replace("  ssh) ", "  ssh) exit 255; "), "the hosts exist and could not be set up, 3 times"),
    ],
    ids=["no answer", "no host"],
)
def test_keeping_ends_where_nothing_can_be_kept(gcloud, said, tmp_path):
    path = program(tmp_path / "bin", "gcloud", gcloud)
    done = script("tpu_vm.sh", "keep", *RUN, cwd=tmp_path, path=path, **TPU, NFS="h:/s", POLL="0.01")
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]


def test_a_training_that_runs_is_not_started_again(tmp_path):
    program(tmp_path / "bin", "gcloud", _GCLOUD)
    (tmp_path / "host" / "awcl").mkdir(parents=True)
    with (tmp_path / "host" / "awcl.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = script("tpu_vm.sh", "run", *RUN, cwd=tmp_path, path=tmp_path / "bin", **TPU)
    assert done.stdout == "Already running.\n"
    assert not (tmp_path / "host" / "awcl.log").exists()


def test_slurm_uses_a_folder_that_outlives_a_requeue():
    (words,) = commands(dry("slurm.sbatch", "--config=configs/fine.py", SLURM_JOB_ID="17"))
    assert words[0] == "srun"
    assert words[-4:] == ["-m", "awcl_jax.main", "--workdir=runs/slurm-17", "--config=configs/fine.py"]
    # Whichever way it is written, the last one counts: the user's.
    for given in (RUN, ("--workdir", "runs/mine", "--config", "configs/fine.py")):
        (words,) = commands(dry("slurm.sbatch", *given, SLURM_JOB_ID="17", VENV="/env"))
        assert words[-4 - len(given) :] == ["/env/bin/python", "-m", "awcl_jax.main", "--workdir=runs/slurm-17", *given]


@pytest.mark.parametrize(("per_node", "gpus", "seen"), [("1", "4", "0,1,2,3"), ("4", "4", None), ("1", "1", None)])
def test_a_process_alone_on_its_node_sees_all_gpus(per_node, gpus, seen):
    said = dry("slurm.sbatch", *RUN, SLURM_NTASKS_PER_NODE=per_node, SLURM_GPUS_ON_NODE=gpus)
    assert (f"JAX_LOCAL_DEVICE_IDS={seen}" in said) == (seen is not None)
    assert ("JAX_LOCAL_DEVICE_IDS" in said) == (seen is not None)


# Fields of JobSet v1alpha2, from its published definition; of the jobs in it Kubernetes' own schema tells.
_OBJECT = {"type": "object", "additionalProperties": False}
JOB_SET = _OBJECT | {
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": _OBJECT
        | {
            "required": ["name"],
            "properties": {
                "name": {"pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
                "annotations": {"additionalProperties": {"type": "string"}},
            },
        },
        "spec": _OBJECT
        | {
            "required": ["replicatedJobs"],
            "properties": {
                "failurePolicy": _OBJECT | {"properties": {"maxRestarts": {"type": "integer"}}},
                "replicatedJobs": {
                    "minItems": 1,
                    "items": _OBJECT
                    | {
                        "required": ["name", "template"],
                        "properties": {
                            "name": {"type": "string"},
                            "replicas": {"type": "integer"},
                            "template": _OBJECT | {"required": ["spec"], "properties": {"spec": {"type": "object"}}},
                        },
                    },
                },
            },
        },
    },
}


def job_set(kind: str, *arguments: str, **variables: str) -> dict:
    return yaml.safe_load(dry("kubernetes.sh", kind, *(arguments or RUN), **variables))


@pytest.mark.parametrize(("kind", "variables"), [("gpu", GPUS), ("tpu", CHIPS)])
def test_the_manifests_are_valid(kind, variables):
    manifest = job_set(kind, **variables)
    jsonschema.validate(manifest, JOB_SET)
    (jobs,) = manifest["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "awcl-hosts-0"}} | jobs["template"]
    kubernetes_validate.validate(job, "1.31", strict=True)
    spec = job["spec"]
    assert spec["parallelism"] == spec["completions"] == int(variables["NODES"])
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"] + pod["initContainers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        for text in container["args"]:
            subprocess.run(["bash", "-n", "-c", text], check=True)
    limits = pod["containers"][0]["resources"]["limits"]
    assert limits == ({"nvidia.com/gpu": 8} if kind == "gpu" else {"google.com/tpu": 4})
    if kind == "tpu":
        selected = pod["nodeSelector"].values()
        assert set(selected) == {variables["ACCELERATOR"], variables["TOPOLOGY"]}
    assert "${" not in json.dumps(manifest)


def test_a_field_that_does_not_exist_is_seen():
    manifest = job_set("gpu", **GPUS)
    spec = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    spec["template"]["spec"]["containers"][0]["resource"] = {}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": spec}
    with pytest.raises(kubernetes_validate.ValidationError, match="resource"):
        kubernetes_validate.validate(job, "1.31", strict=True)


TINY = (
    *("--config=configs/fine.py:tiny", "--config.train.steps=4", "--config.train.eval_every=4"),
    *("--config.train.log_every=1", "--config.train.checkpoint_every=2", "--config.optim.warmup_steps=0"),
    *("--config.model.width_factor=0.0625", "--config.report.pictures=false"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder like the repository's on a cluster, with an environment and a phantom, for runs of one to two hosts."""
    place = tmp_path_factory.mktemp("cluster")
    (place / "configs").symlink_to(ROOT / "configs")
    program(place / ".venv" / "bin", "python", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    return place


def variables(place: Path, **more: str) -> dict[str, str]:
    cluster = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(place / "cache"), "JAX_PLATFORMS": "cpu"}
    return {"PATH": os.environ["PATH"], "HOME": str(place)} | cluster | more


def start(place: Path, *command: str, **environment: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=place, env=variables(place, **environment), **pipes)


@pytest.fixture(scope="module")
def alone(place) -> Path:
    """The run of one process."""
    running = start(place, ".venv/bin/python", "-m", "awcl_jax.main", *TINY, "--processes=1", "--workdir=runs/alone")
    said = running.communicate(timeout=600)
    assert running.returncode == 0, said
    return place / "runs" / "alone"


def assert_same_run(workdir: Path, other: Path) -> None:
    results, expected = (json.loads((folder / "results.json").read_text()) for folder in (workdir, other))
    for each in (results, expected):
        del each["peak_memory_mb"]
    found, leaves = flat(results), flat(expected)
    assert found.keys() == leaves.keys()
    for name, value in leaves.items():
        close = pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True) if isinstance(value, float) else value
        assert found[name] == close, name
    losses, wanted = (
        [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
        for folder in (workdir, other)
    )
    assert losses == pytest.approx(wanted, rel=1e-4)
    assert len(losses) == 4


def flat(tree: dict | list, prefix: str = "") -> dict:
    """The leaves of nested dicts and lists, by their place."""
    leaves = {}
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict | list) else {f"{prefix}{name}": value}
    return leaves


# What srun does: a process for each task, told by its environment who it is, its output in a file of its own.
_SRUN = f"""#!{sys.executable}
import os, subprocess, sys
command = [word for word in sys.argv[1:]]
options = []
while command[0].startswith("--"):
    options.append(command.pop(0))
(output,) = (option.partition("=")[2] for option in options if option.startswith("--output="))
tasks = int(os.environ["SLURM_NTASKS"])
running = []
for task in range(tasks):
    step = {{"SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}}
    log = open(output.replace("%t", str(task)), "a")
    running.append(subprocess.Popen(command, env=os.environ | step, stdout=log, stderr=log))
sys.exit(max(process.wait() for process in running))
"""


@pytest.mark.slow
def test_two_processes_under_slurm_end_like_one_and_resume(place, alone, unused_port):
    path = program(place / "slurm", "srun", _SRUN)
    job = variables(place, SLURM_JOB_ID="17", SLURM_NTASKS="2", SLURM_NTASKS_PER_NODE="2", SLURM_GPUS_ON_NODE="2")
    job |= {"PATH": f"{path}:{job['PATH']}", "JAX_COORDINATOR_PORT": str(unused_port)}
    command = ["bash", str(LAUNCH / "slurm.sbatch"), *TINY]
    logs = [place / "runs" / f"slurm-17.{process}.log" for process in (0, 1)]
    done = subprocess.run(command, cwd=place, env=job, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, [log.read_text() for log in logs]
    assert_same_run(place / "runs" / "slurm-17", alone)
    said = [log.read_text() for log in logs]
    assert "on 2 cpu device(s)" in said[0]
    assert [line for line in said[1].splitlines() if not line.startswith("[Gloo]")] == []
    again = subprocess.run(command, cwd=place, env=job, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0, [log.read_text() for log in logs]
    assert "Resuming from step 4 of 4." in logs[0].read_text()
    assert_same_run(place / "runs" / "slurm-17", alone)


@pytest.mark.slow
def test_two_pods_of_the_job_set_end_like_one_process(place, alone, unused_port):
    workdir = "--workdir=/mnt/awcl/runs/pods"
    manifest = job_set("gpu", *TINY, workdir, **GPUS)
    (train,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    (text,) = train["args"]
    # The volume, and the name that JobSet gives to the first pod.
    here = text.replace("/mnt/awcl", str(place)).replace("awcl-hosts-0-0.awcl:8476", f"localhost:{unused_port}")
    assert here.count("localhost") == 1
    pods = [start(place, *train["command"], here, JOB_COMPLETION_INDEX=str(index)) for index in (0, 1)]
    said = [pod.communicate(timeout=600) for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], said
    assert_same_run(place / "runs" / "pods", alone)


@pytest.mark.slow
def test_hosts_that_do_not_share_the_folder_are_refused_at_once(place, alone, unused_port):
    flags = (f"--coordinator=localhost:{unused_port}", "--processes=2")
    run = (".venv/bin/python", "-m", "awcl_jax.main", *TINY, *flags)
    hosts = [start(place, *run, f"--process={index}", f"--workdir=runs/host{index}") for index in (0, 1)]
    said = [host.communicate(timeout=600)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [1, 1], said
    assert said[0].splitlines()[-1] == "error: Process 1 of 2 failed. See its error."
    assert "Choose a --workdir that all hosts share" in said[1].splitlines()[-1]
    assert not (place / "runs" / "host1").exists()
