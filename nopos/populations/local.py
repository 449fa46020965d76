"""The engine for one machine: long-lived processes that share its cores.

A worker starts as a fresh interpreter, so this module imports neither torch nor numpy: `worker.prepare` says how many
threads each of them may have before they are loaded.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from nopos.populations import worker
from nopos.populations.engine import TRIES, Done, Task, died, in_one_line


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Local:
    """An engine of processes on this machine; a context manager, at whose end none of them is left.

    When a worker dies, nobody knows by which of the tasks under way. Each of them counts that death and is tried again
    by itself, so that a task that kills its worker spoils no other.
    """

    def __init__(self, workers: int) -> None:
        """Start nothing yet.

        Args:
            workers: processes; the cores are shared out among them.
        """
        self.workers = workers
        self._threads = max(1, cores() // workers)
        self._new, self._suspects = deque[Task](), deque[Task]()
        self._running: dict[Future[Any], tuple[Task, ProcessPoolExecutor]] = {}
        self._deaths: dict[Task, int] = {}
        self._ended = deque[Done]()
        self._pool = self._fresh_pool()

    def submit(self, task: Task) -> None:
        """Take a task in; returns at once."""
        self._new.append(task)
        self._fill()

    def next(self) -> Done:
        """Wait for any task to end."""
        while not self._ended:
            self._fill()
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                if future in self._running:  # it is not if one before it took all of a pool
                    self._take(future)
        return self._ended.popleft()

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:  # what is under way is not waited for
            _kill(self._pool)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fresh_pool(self) -> ProcessPoolExecutor:
        # Forked, a worker would have torch's threads as they were in the driver, which do not live on in it.
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.workers, mp_context=spawn, initializer=_start, initargs=(self._threads,))

    def _fill(self) -> None:
        """Have the workers do all that they may do beside each other."""
        if any(task in self._deaths for task, _ in self._running.values()):
            return
        if self._suspects:
            if not self._running:
                self._begin(self._suspects.popleft())
            return
        while self._new:
            self._begin(self._new.popleft())

    def _begin(self, task: Task) -> None:
        with _ctrl_c_held_back():
            try:
                future = self._pool.submit(task.function, *task.arguments)
            except BrokenProcessPool:  # a worker died with nothing to do, or those of its tasks are still to be taken
                self._pool = self._fresh_pool()
                future = self._pool.submit(task.function, *task.arguments)
        self._running[future] = task, self._pool

    def _take(self, future: Future[Any]) -> None:
        """Take what came out of a task; if its worker died, of all tasks of the pool, which ends with its first one."""
        task, pool = self._running.pop(future)
        if self._lived(task, future):
            return
        for other in [each for each, (_, its_pool) in self._running.items() if its_pool is pool]:
            self._lived(self._running.pop(other)[0], other)
        if pool is self._pool:
            pool.shutdown(wait=True)
            self._pool = self._fresh_pool()

    def _lived(self, task: Task, future: Future[Any]) -> bool:
        """Take what came out of one task; whether the worker that had it is alive."""
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            self._take_death(task)
            return False
        self._ended.append(Done(task, future.result()) if error is None else Done(task, failure=in_one_line(error)))
        return True

    def _take_death(self, task: Task) -> None:
        self._deaths[task] = self._deaths.get(task, 0) + 1
        if self._deaths[task] < TRIES:
            self._suspects.append(task)
        else:
            self._ended.append(died(task))


def _kill(pool: ProcessPoolExecutor) -> None:
    # Private, but before Python 3.14 there is no other way to end work that is under way.
    for process in list((pool._processes or {}).values()):
        process.kill()


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """A worker that starts within never sees Ctrl-C, not even before `_start`; the driver sees it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(threads: int) -> None:
    """What a worker does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends its workers
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    sys.stderr = _NoTerminal(sys.stderr.buffer, line_buffering=True)  # the driver alone shows a bar
    worker.prepare(threads)


class _NoTerminal(io.TextIOWrapper):
    """Standard error that takes what is written, and does not look like a terminal to a progress bar."""

    def isatty(self) -> bool:
        return False


def _end_with_the_driver() -> None:
    """A driver that was killed ends nobody, and its workers would wait for work for ever."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
