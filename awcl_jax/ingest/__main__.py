"""The command `python -m awcl_jax.ingest`."""

import sys

from awcl_jax.ingest.command import main

if __name__ == "__main__":
    sys.exit(main())
