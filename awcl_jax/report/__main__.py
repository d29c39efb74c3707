"""The command `python -m awcl_jax.report`."""

import sys

from awcl_jax.report.command import main

if __name__ == "__main__":
    sys.exit(main())
