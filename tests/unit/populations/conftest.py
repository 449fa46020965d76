from __future__ import annotations

from collections import deque

import pytest

from nopos.model import recipes
from nopos.populations import local, work
from nopos.populations.engine import Done, in_one_line
from tests.support.quick_sweep import quick_calibrate, quick_check, quick_evaluate


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


@pytest.fixture
def real_work(monkeypatch, tiny_recipe, one_claim):
    """`nopos sweep` with a recipe called `tiny`, one claim and no other process."""
    monkeypatch.setattr(InProcess, "done", 0)
    monkeypatch.setattr(InProcess, "most", 10**9)
    monkeypatch.setattr(local, "Local", InProcess)
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny_recipe)
    return InProcess


@pytest.fixture
def in_process(real_work, monkeypatch):
    """The same with work that takes no time, but for training."""
    monkeypatch.setattr(work, "evaluate_controls", quick_evaluate)
    monkeypatch.setattr(work, "calibrate", quick_calibrate)
    monkeypatch.setattr(work, "check_claims", quick_check)
    return real_work
