"""The command `python -m awcl_jax.embed`."""

import sys

from awcl_jax.embed.command import main

if __name__ == "__main__":
    sys.exit(main())
