"""The versions that the tests passed with, by the Python that runs."""

import sys
from pathlib import Path

LOCKS = [Path(__file__).parents[2] / name for name in ("constraints.txt", "constraints-py313.txt")]
"""Files to pass to `pip install -c`."""

LOCK = LOCKS[0] if sys.version_info < (3, 12) else LOCKS[1]
"""The one for this Python."""
