"""An engine without other processes."""

from __future__ import annotations

from collections import deque

from nopos.populations.engine import Done, in_one_line


class InProcess:
    """An engine that does everything here, one task after another; the last task that it took in comes first."""

    done = 0
    most = 10**9
    """After so many tasks it is interrupted, as by Ctrl-C."""

    def __init__(self, workers):
        self.workers = workers
        self._tasks = deque()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def submit(self, task):
        self._tasks.append(task)

    def next(self):
        if InProcess.done >= InProcess.most:
            raise KeyboardInterrupt
        InProcess.done += 1
        task = self._tasks.pop()
        try:
            return Done(task, task.function(*task.arguments))
        except Exception as error:
            return Done(task, failure=in_one_line(error))
