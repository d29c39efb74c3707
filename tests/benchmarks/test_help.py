"""Every benchmark explains itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Those that can be started; the others are modules for these.
BENCHMARKS = sorted(
    file.stem for file in (ROOT / "benchmarks").glob("*.py") if 'if __name__ == "__main__":' in file.read_text()
)


def test_benchmarks_are_found():
    assert {"loss", "step", "throughput"} <= {*BENCHMARKS}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "throughput" else pytest.mark.slow) for name in BENCHMARKS]
)
def test_help_exits_with_status_0(name):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m benchmarks.{name}" in done.stdout
