"""`python -m dollar_jax COMMAND` is the same as `dollar COMMAND`."""

import sys

from dollar_jax import cli

if __name__ == "__main__":
  sys.exit(cli.main())
