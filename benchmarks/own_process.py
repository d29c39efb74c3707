"""Run a measurement in a separate process, and measure the memory of a process."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any


def in_own_process(
    module: str, *arguments: object, environment: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Run `python -m MODULE ARGUMENTS`, with more variables of the environment; return the JSON of its last line."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory_mb(field: str) -> float:
    """Return this process's memory in megabytes, current (`VmRSS`) or peak (`VmHWM`), on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def forget_peak() -> None:
    """Reset this process's peak memory, on Linux."""
    Path("/proc/self/clear_refs").write_text("5")
