"""`awcl_jax.main` in a process that kills itself: `python -m tests.helpers.dying_main FAULT AT [flags of main]`.

The fault is one of `tests.helpers.killed_runs.dying`. It kills the process that works, as the loss of its host would;
the one that waits for it then exits with 137.
"""

import runpy
import sys

from tests.helpers.killed_runs import dying

if __name__ == "__main__":
    name, at = sys.argv[1:3]
    del sys.argv[1:3]
    with dying(name, float(at)):
        runpy.run_module("awcl_jax.main", run_name="__main__", alter_sys=True)
