"""Ctrl-C and SIGTERM: a request that a loop polls, or an immediate exit with a line that says how to resume."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether someone asked the run to stop (Ctrl-C, or a terminate signal)."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)  # a second Ctrl-C stops at once
        # A second SIGTERM is the same request: schedulers send one to each process, and torchrun, too.


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGINT and SIGTERM become a request that the loop polls after each step (in the main thread only)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interrupt_with_resume_hint() -> Iterator[None]:
    """Ctrl-C and SIGTERM stop at once, with a message about --resume; for the time before and after the loop."""
    in_main = threading.current_thread() is threading.main_thread()
    former = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main else None
    try:
        yield
    except KeyboardInterrupt as stop:
        text = "stopped; saved results are not lost: add --resume to the same command to continue"
        raise KeyboardInterrupt(str(stop) or text) from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, former)
