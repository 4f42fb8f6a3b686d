"""The process of the command: `trigflow`, which is `python -m trigflow`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def run() -> None:
    """The command line of this process, to its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody has it ignored
        signal.signal(signal.SIGINT, interrupt)
    try:
        from trigflow.commands.cli import main
        from trigflow.system.launch import is_launched

        code = main()
        if code and is_launched():
            # At its regular end, a process would wait in NCCL for others, which may wait for it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    except KeyboardInterrupt:
        _stop()
    sys.exit(code)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C. While modules are imported it ends the process: torch and NumPy swallow exceptions, or show them."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            _stop()
        frame = frame.f_back
    raise KeyboardInterrupt


def _stop() -> None:
    os.write(2, b"trigflow: stopped\n")
    os._exit(130)


if __name__ == "__main__":
    run()
