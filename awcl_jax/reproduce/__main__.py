"""The command `python -m awcl_jax.reproduce`."""

import sys

from awcl_jax.reproduce.command import main

if __name__ == "__main__":
    sys.exit(main())
