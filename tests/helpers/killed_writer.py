"""A process that is killed while it writes: `python -m tests.helpers.killed_writer file|folder PATH`."""

import os
import signal
import sys
from pathlib import Path

from awcl_jax.runtime.files import atomic_folder, atomic_write

if __name__ == "__main__":
    path = Path(sys.argv[2])
    if sys.argv[1] == "file":
        with atomic_write(path) as part:
            part.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    with atomic_folder(path) as part:
        (part / "inside").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
