"""Independent tasks, several at once, each in a process with one thread.

A small network gains little from many threads, so the cores are used by trainings side by side. One thread each,
however many there are: the numbers do not depend on it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Protocol

import torch

from trigflow.system.errors import UserError


class Task(Protocol):
    """Something to do that keeps its own result; it can be sent to another process."""

    @property
    def name(self) -> str:
        """What it is, in a word."""

    def __call__(self) -> None: ...


def run_all(tasks: Sequence[Task], jobs: int, on_done: Callable[[str], None] = lambda name: None) -> None:
    """Does all tasks, `jobs` at once; with one it stays in this process.

    Args:
        tasks: independent of each other, begun in this order.
        jobs: processes, >= 1.
        on_done: is told the name of each as it ends.

    Raises:
        UserError: a task's own, or a process that was killed; the other tasks are stopped, what they saved stays.
        KeyboardInterrupt: Ctrl-C, likewise.
    """
    if jobs == 1 or len(tasks) <= 1:
        with one_thread():
            for task in tasks:
                task()
                on_done(task.name)
        return
    workers = [_Worker() for _ in range(min(jobs, len(tasks)))]
    try:
        _hand_out(tasks, workers, on_done)
    finally:
        for worker in workers:
            worker.stop()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch computes in one thread."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(former)


class _Worker:
    """A process that does one task after the other."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self.connection, far = context.Pipe()
        self.process = context.Process(target=_serve, args=(far,))
        self.process.start()
        far.close()  # so that the end of the process ends the line
        self.task: Task | None = None

    def begin(self, task: Task) -> None:
        self.task = task
        try:
            self.connection.send(task)
        except (BrokenPipeError, ConnectionResetError):
            raise self._killed() from None

    def finish(self) -> str:
        """The name of the task that it has done; raises what the task raised."""
        assert self.task
        try:
            failure: BaseException | None = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._killed() from None
        name, self.task = self.task.name, None
        if failure:
            raise failure
        return name

    def _killed(self) -> UserError:
        assert self.task
        return UserError(
            f"the process of '{self.task.name}' was killed (out of memory?): the same command resumes; try --jobs 1"
        )

    def stop(self) -> None:
        """A training under way saves its state first."""
        if self.task:
            self.process.terminate()
        self.connection.close()  # before waiting: a process without a task waits for the next one
        self.process.join()


def _hand_out(tasks: Sequence[Task], workers: list[_Worker], on_done: Callable[[str], None]) -> None:
    waiting = list(reversed(tasks))
    busy: dict[object, _Worker] = {}
    for worker in workers:
        worker.begin(waiting.pop())
        busy[worker.connection] = worker
    while busy:
        for connection in wait([worker.connection for worker in busy.values()]):
            worker = busy[connection]
            on_done(worker.finish())
            if waiting:
                worker.begin(waiting.pop())
            else:
                del busy[connection]


def _serve(connection: Connection) -> None:
    """In the process: answers each task with None, or with what it raised. Ends with the line to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then terminates us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            connection.send(_outcome(connection.recv()))


def _end_with_parent() -> None:
    """However the parent ended: a training under way saves its state, and the folder is free for the next start."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _outcome(task: Task) -> BaseException | None:
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        task()
    except (UserError, KeyboardInterrupt) as stop:
        return type(stop)(str(stop))
    except Exception:  # a bug: shown where someone looks, with its place
        return RuntimeError(traceback.format_exc())
    finally:
        signal.signal(signal.SIGTERM, former)
    return None
