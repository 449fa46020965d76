"""Workers start here without torch, which is not what these tests are about; the slow test of `sweep` has all of it."""

from __future__ import annotations

import io
import os
import time

import psutil
import pytest
from tqdm.auto import tqdm

from nopos.populations import local
from nopos.populations.engine import Task
from nopos.populations.local import Local

ONCE = """
import os, pathlib
path = pathlib.Path({path!r})
if not path.exists():
    path.touch()
    os._exit(1)
"""


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr(local, "_start", int)  # which takes the number of threads and does nothing
    with Local(2) as engine:
        yield engine


def results(engine, tasks):
    for task in tasks:
        engine.submit(task)
    done = [engine.next() for _ in tasks]
    return {one.task.of: one.value if one.failure is None else one.failure for one in done}


def test_what_comes_out_of_each_task_is_returned_once(engine):
    tasks = [Task(number, pow, (number, 2)) for number in range(5)] + [Task("wrong", int, ("three",))]
    found = results(engine, tasks)
    assert found.pop("wrong") == "ValueError: invalid literal for int() with base 10: 'three'"
    assert found == {number: number**2 for number in range(5)}


def test_a_task_whose_worker_dies_is_tried_again_and_so_are_those_beside_it(engine, tmp_path):
    path = str(tmp_path / "died")
    found = results(
        engine, [Task("dies once", exec, (ONCE.format(path=path),)), *(Task(n, abs, (-n,)) for n in (1, 2))]
    )
    assert found == {"dies once": None, 1: 1, 2: 2}
    assert (tmp_path / "died").exists()


SLOW = "__import__('time').sleep(0.5) or {number}"
"""Long enough that a worker beside it could die three times."""


def test_a_task_that_always_kills_its_worker_fails_and_spoils_no_other(engine):
    others = [Task(number, eval, (SLOW.format(number=number),)) for number in (1, 2, 3)]
    found = results(engine, [Task("deadly", os._exit, (1,)), *others])
    assert found == {"deadly": "its worker process died 3 times", 1: 1, 2: 2, 3: 3}
    assert results(engine, [Task("after", abs, (-4,))]) == {"after": 4}


def interrupted():
    with Local(1) as engine:
        engine.submit(Task("first", abs, (-1,)))
        engine.next()
        engine.submit(Task("long", time.sleep, (100,)))
        raise KeyboardInterrupt


def test_what_is_under_way_when_the_driver_fails_is_ended(monkeypatch):
    monkeypatch.setattr(local, "_start", int)
    before = set(psutil.Process().children(recursive=True))
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.perf_counter() - start < 50
    children = set(psutil.Process().children()) - before
    left = [one for one in children if "resource_tracker" not in " ".join(one.cmdline())]
    assert left == []


def test_the_cores_are_shared_out_among_the_workers(monkeypatch):
    monkeypatch.setattr(local, "cores", lambda: 8)
    assert [Local(workers)._threads for workers in (1, 3, 8, 20)] == [8, 2, 1, 1]


def test_a_workers_standard_error_takes_what_is_written_and_looks_like_no_terminal(monkeypatch):
    terminal = _Terminal()
    assert terminal.isatty()
    error = local._NoTerminal(terminal.buffer, line_buffering=True)
    print("a line", file=error)
    assert terminal.buffer.getvalue() == b"a line\n"
    assert tqdm(range(2), disable=None, file=error).disable


class _Terminal(io.TextIOWrapper):
    def __init__(self):
        super().__init__(io.BytesIO())

    def isatty(self):
        return True
