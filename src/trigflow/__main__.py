"""`python -m trigflow` is the command `trigflow`."""

import os
import sys

from trigflow.cli import main
from trigflow.launch import is_launched

if __name__ == "__main__":
    code = main()
    if code and is_launched():
        # At its regular end, a process would wait in NCCL for others, which may wait for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
