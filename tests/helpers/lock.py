"""The versions that the tests passed with, by the Python that runs."""

import sys
from pathlib import Path

LOCK = Path(__file__).parents[2] / ("constraints.txt" if sys.version_info < (3, 12) else "constraints-py313.txt")
"""The file to pass to `pip install -c`."""
