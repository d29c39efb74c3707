"""Measurements in a process of their own, and the memory that such a process takes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def in_own_process(module: str, *arguments: object) -> dict[str, Any]:
    """What `python -m MODULE ARGUMENTS` prints as its last line, of JSON."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory_mb(field: str) -> float:
    """Megabytes that this process holds (`VmRSS`) or has held at most (`VmHWM`), on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def forget_peak() -> None:
    """Count what this process holds at most from now on, on Linux."""
    Path("/proc/self/clear_refs").write_text("5")
