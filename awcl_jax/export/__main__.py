"""The command `python -m awcl_jax.export`."""

import sys

from awcl_jax.export.command import main

if __name__ == "__main__":
    sys.exit(main())
