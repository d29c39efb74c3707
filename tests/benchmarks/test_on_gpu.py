"""The measurement on a GPU: that it runs from end to end on a CPU, and what becomes of parts that fail."""

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from awcl_jax.runtime.errors import InputError
from benchmarks import gpu_numbers, gpu_parts, gpu_sizes, on_gpu

ROOT = Path(__file__).parents[2]
MEASURED = argparse.Namespace(rehearse=False)


def start(*arguments, environment=None):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.on_gpu", *arguments],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_part_has_a_limit_and_all_but_the_last_fit():
    assert on_gpu.PARTS.keys() == gpu_parts.PARTS.keys()
    assert {*gpu_sizes.FULL.arch} == {*gpu_sizes.REHEARSAL.arch} <= {*on_gpu.PARTS}


def test_the_command_itself_imports_nothing_that_may_be_missing():
    code = (
        "import sys; before = {*sys.modules}; import benchmarks.on_gpu;"
        "print(*{m.split('.')[0] for m in {*sys.modules} - before} - {*sys.stdlib_module_names})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {*done.stdout.split()} == {"awcl_jax", "benchmarks"}


@pytest.mark.parametrize(
    "name",
    ["gpu_numbers", "gpu_parts", "gpu_sizes", "loss", "noise", "on_gpu", "own_process", "peak", "scaling", "step"],
)
def test_no_part_needs_what_only_tests_need(name):
    # tests/__init__.py imports packages of the extra `test`, which the machine lacks.
    assert not re.findall(
        r"^\s*(?:from|import) tests\b", (ROOT / "benchmarks" / f"{name}.py").read_text(), re.MULTILINE
    )


@pytest.mark.slow
def test_a_rehearsal_measures_every_part_and_is_resumed(tmp_path):
    out = tmp_path / "out"
    done = start("--rehearse", f"--out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {one["part"]: one for one in json.loads((out / "results.json").read_text())}
    assert found.keys() == on_gpu.PARTS.keys()
    assert all(one["complete"] and one["rows"] and one["error"] is None for one in found.values())
    # Two steps of one program on a CPU are equal; so are its loss and that of another process.
    values = {row["what"]: row["values"] for one in found.values() for row in one["rows"]}
    assert values["same step twice: equal bit for bit"] == [1.0]
    assert values["step in float32: loss"][0] < 1e-6
    assert values["export as jax"][0] > 0
    assert "these numbers mean nothing" in (out / "table.md").read_text()

    (out / "machine.json").unlink()
    again = start("--rehearse", f"--out={out}")
    assert again.returncode == 0
    assert "machine: measured (" in again.stdout
    assert again.stdout.count("measured before") == len(found) - 1
    refused = start(f"--out={out}")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "has the results of a rehearsal. Choose another --out." in refused.stderr


@pytest.mark.slow
def test_without_a_gpu_it_ends_with_one_line(tmp_path):
    done = start(f"--out={tmp_path}", environment={"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "JAX finds no GPU (its platform is cpu)" in done.stderr


ALIKE = {name: np.array([3.0, 4.0]) for name in gpu_numbers.TOLERANCES}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("loss, rows against others", [3.0, 4.0001], "2e-05, at most 1e-05"),  # 0.0001 of a norm of 5
        ("step in float32: loss", [3.0, 4.1], "0.02, at most 0.01"),
        ("step in bfloat16: change of the parameters", [np.nan, 4.0], "nan, at most 0.8"),
    ],
)
def test_numbers_that_are_not_the_cpus_are_named_and_still_in_the_table(name, value, error):
    lines = {}
    with pytest.raises(InputError, match=re.escape(f"Not the CPU's numbers: {name} ({error}).")):
        gpu_numbers.compare(
            lambda what, unit, values: lines.update({what: values}), ALIKE | {name: np.array(value)}, ALIKE
        )
    assert lines.keys() == gpu_numbers.TOLERANCES.keys()
    assert lines["loss, rows against themselves"] == [0]


def test_every_step_is_compared_with_the_one_in_float32():
    doubled = {name: 2 * value for name, value in ALIKE.items()} | {
        "step in float32: loss": ALIKE["step in float32: loss"]
    }
    lines = {}
    with pytest.raises(InputError):
        gpu_numbers.compare(lambda what, unit, values: lines.update({what: values}), ALIKE, doubled)
    assert {name for name, values in lines.items() if values == [0]} == {
        name for name in lines if name.endswith(": loss")
    }


def run(code: str, file: Path, *, limit: float | None) -> dict:
    """The file of a part that is this program."""
    on_gpu._run([sys.executable, "-c", code], {**os.environ}, limit=limit, file=file, args=MEASURED)
    return json.loads(file.read_text())


def test_a_part_that_fails_has_its_last_line_and_its_output(tmp_path):
    found = run("print('first'); raise KeyError('rows')", tmp_path / "loss.json", limit=60)
    assert (found["part"], found["complete"]) == ("loss", False)
    assert found["error"] == "ended with status 1: KeyError: 'rows'"
    assert found["output"].startswith("first\nTraceback")


def test_a_part_that_takes_too_long_ends_with_its_children_and_keeps_its_lines(tmp_path):
    file = tmp_path / "loss.json"
    child = "import os, time; open('child', 'w').write(str(os.getpid())); time.sleep(600)"
    part = json.dumps(on_gpu._nothing("loss", rehearsal=False) | {"rows": [{"what": "w", "unit": "u", "values": [1]}]})
    code = (
        f"import os, subprocess, sys, time; os.chdir({str(tmp_path)!r}); open('loss.json', 'w').write({part!r});"
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(600)"
    )
    found = run(code, file, limit=5)
    assert found["error"] == "stopped after 5 s, its time limit"
    assert [row["what"] for row in found["rows"]] == ["w"]
    number = int((tmp_path / "child").read_text())
    for _ in range(100):
        # The status of a process that has ended but was not waited for is Z.
        status = Path(f"/proc/{number}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child runs on")


def write_wheel(folder: Path, name: str) -> None:
    information = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "answer = 42\n")
        wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")


def test_only_wheels_that_are_missing_are_installed_and_beside_the_others(tmp_path):
    write_wheel(tmp_path, "awcl_made_up")
    write_wheel(tmp_path, "numpy")
    site = tmp_path / "site"
    assert on_gpu.install(tmp_path, site) == ["awcl_made_up"]
    assert (site / "awcl_made_up.py").exists()
    assert not (site / "numpy.py").exists()
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("awcl_made_up")


def test_a_folder_without_wheels_and_an_unknown_part_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no wheels"):
        on_gpu.install(tmp_path, tmp_path / "site")
    args = on_gpu._parser().parse_args([f"--out={tmp_path}", "--parts=machine,lost"])
    with pytest.raises(InputError, match=r"Unknown parts \['lost'\]; must be among machine, numbers, "):
        on_gpu._measure_all(args)


def test_the_table_has_medians_with_extremes_and_what_failed():
    one = on_gpu._nothing("loss", rehearsal=False)
    one |= {"rows": [{"what": "of 8 rows", "unit": "share", "values": [0.3, 0.1, 0.25]}], "notes": ["9 MB"]}
    assert [*on_gpu._table([one | {"error": "no memory"}])][1:] == [
        "| loss | of 8 rows | 0.25 (0.1, 0.3) | share | 3 |",
        "",
        "- loss: 9 MB",
        "- loss FAILED: no memory",
    ]
