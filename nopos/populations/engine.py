"""What a sweep needs of whatever runs its work: tasks in, what came out of them back, in any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

TRIES = 3
"""A task whose worker dies so often has failed."""


@dataclass(frozen=True, eq=False)
class Task:
    """A function to run elsewhere, and what the driver knows it by. Two tasks are never one, whatever they hold."""

    of: Any
    """What the driver gave it to know it by; it stays with the driver."""
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    """Values and bytes that can be pickled."""


@dataclass(frozen=True)
class Done:
    """What came out of a task."""

    task: Task
    value: Any = None
    failure: str | None = None
    """Why there is no value, in one line; None if there is one."""


@runtime_checkable
class Engine(Protocol):
    """Runs tasks on its workers. A worker that dies takes no task with it: the task is tried again, a few times."""

    workers: int
    """How many; known once the engine is entered."""

    def submit(self, task: Task) -> None:
        """Take a task in; returns at once."""
        ...

    def next(self) -> Done:
        """Wait for any task to end; every task that was submitted is returned once."""
        ...


def each_done(engine: Engine, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Done]:
    """What comes of a function for each of some arguments, in their order; nothing else may be under way."""
    for number, each in enumerate(arguments):
        engine.submit(Task(number, function, each))
    found = {done.task.of: done for done in [engine.next() for _ in arguments]}
    return [found[number] for number in range(len(arguments))]


def died(task: Task) -> Done:
    """What is returned of a task that was tried often enough."""
    return Done(task, failure=f"its worker process died {TRIES} times")


def in_one_line(error: BaseException) -> str:
    """An exception's type and message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
