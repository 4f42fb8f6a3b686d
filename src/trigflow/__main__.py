"""`python -m trigflow` is the command `trigflow`."""

import sys

from trigflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
