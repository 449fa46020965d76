"""The engine for a cluster, by Ray (the extra `cluster`): long-lived actors, each with one task at a time.

Actors import this module, which therefore imports neither torch nor numpy; nor Ray, see `cluster`.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any

from nopos.errors import ConfigError, WorkerError
from nopos.populations import cluster, local, worker
from nopos.populations.engine import TRIES, Done, Task, died, in_one_line

Facts = Callable[[], Mapping[str, str]]
"""What decides the bits that a process makes; can be pickled."""
BEGIN_SECONDS = 120
"""So long the first worker has to begin, and another one when none is left: torch is loaded in it."""
LOOK_SECONDS = 10
"""After so long without anything it is looked whether Ray is there at all."""


class Worker:
    """What runs in an actor."""

    def __init__(self, threads: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends its workers
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # an actor without GPUs may see them all the same
        worker.prepare(threads)

    def begin(self, facts: Facts) -> tuple[str, dict[str, str]]:
        """The address of the node, and what decides the bits that are made on it."""
        import ray

        return ray.util.get_node_ip_address(), dict(facts())

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, str | None]:
        """What comes out of a function, or why nothing does."""
        try:
            return function(*arguments), None
        except Exception as error:
            return None, in_one_line(error)


class OnRay:
    """An engine of Ray's actors; a context manager, at whose end none of them is left.

    When an actor dies, it is known which task it had: that one alone counts a death and is tried again. Another actor
    is made in its stead, on whichever node has room for one.
    """

    def __init__(self, workers: int | None, address: str | None, *, most: int, facts: Facts) -> None:
        """Start nothing yet.

        Args:
            workers: actors, among which the CPUs are shared out; None for one a CPU.
            address: of a cluster, as HOST:PORT; None for one of this machine alone.
            most: so many are enough.
            facts: what every worker must have the same as this process.
        """
        self.workers = 0
        self._wanted, self._address, self._most, self._facts = workers, address, most, facts
        self._threads = 1
        self._new, self._ended, self._idle = deque[Task](), deque[Done](), list[Any]()
        self._beginning: dict[Any, Any] = {}
        """Actors, by the reference of what they answer when they are there."""
        self._busy: dict[Any, tuple[Task, Any]] = {}
        """Task and actor, by the reference of what comes out."""
        self._deaths: dict[Task, int] = {}
        self._never_began = 0
        """Actors one after another that died before they were there."""
        self._ray: Any = None
        self._open = ExitStack()

    def submit(self, task: Task) -> None:
        """Take a task in; returns at once."""
        self._new.append(task)
        self._fill()

    def next(self) -> Done:
        """Wait for any task to end.

        Raises:
            WorkerError: no worker is left and none can be had, or one would make other models than this process.
        """
        while not self._ended:
            self._fill()
            self._wait(math.inf if self._busy else BEGIN_SECONDS)
        self._fill()  # so that nobody waits while the driver writes
        return self._ended.popleft()

    def __enter__(self) -> OnRay:
        with ExitStack() as stack:
            wanted = local.cores() if self._wanted is None else self._wanted
            here = stack.enter_context(cluster.connected(self._address, max(local.cores(), wanted)))
            self._ray = here.ray
            self.workers, self._threads = shared_out(here.cpus, self._wanted, self._most)
            self._here = dict(self._facts())
            stack.callback(self._end)
            for _ in range(self.workers):
                self._make()
            until = time.monotonic() + BEGIN_SECONDS
            while not self._idle:
                self._wait(until - time.monotonic())
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()  # what is under way is not waited for

    def _make(self) -> None:
        # The variables are there before Python starts in it, and with it numpy, which Ray loads before any actor.
        variables = {**worker.variables(self._threads), "CUDA_VISIBLE_DEVICES": ""}
        kind = self._ray.remote(Worker).options(
            num_cpus=self._threads, num_gpus=0, max_restarts=0, runtime_env={"env_vars": variables}
        )
        actor = kind.remote(self._threads)
        self._beginning[actor.begin.remote(self._facts)] = actor

    def _fill(self) -> None:
        while self._new and self._idle:
            task, actor = self._new.popleft(), self._idle.pop()
            self._busy[actor.run.remote(task.function, task.arguments)] = task, actor

    def _wait(self, seconds: float) -> None:
        """Take what comes next of an actor: that it is there, what came out of its task, or that it died."""
        until, done = time.monotonic() + seconds, list[Any]()
        while not done:
            left = until - time.monotonic()
            if left < 0:
                raise WorkerError(
                    f"no worker could begin in {BEGIN_SECONDS} s; see that the cluster has room for one; start again"
                )
            done, _ = self._ray.wait([*self._busy, *self._beginning], timeout=min(left, LOOK_SECONDS))
            if not done:
                self._require_own_node()
        if done[0] in self._busy:
            self._take(done[0])
        else:
            self._take_begun(done[0])

    def _require_own_node(self) -> None:
        """Raise WorkerError if Ray has ended on this machine, after which it would wait for ever."""
        here = self._ray.get_runtime_context().get_node_id()
        if not any(node["NodeID"] == here and node["Alive"] for node in self._ray.nodes()):
            again = "" if self._address is None else "Ray again, then "
            raise WorkerError(f"Ray has ended on the driver's machine; start {again}the sweep, which goes on")

    def _take_begun(self, reference: Any) -> None:
        actor = self._beginning.pop(reference)
        try:
            node, there = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._kill(actor)
            self._never_began += 1
            if self._never_began < TRIES:
                self._make()
            elif not (self._idle or self._busy or self._beginning):  # else those that are there do all of it
                raise WorkerError(f"a worker cannot begin: {in_one_line(error)[:400]}") from None
            return
        self._idle.append(actor)
        for name, here in self._here.items():
            if there.get(name) != here:
                mend = "have one kind of processor and one compiler" if name == "kernel" else "install the same"
                raise WorkerError(f"the worker on {node} has {name} {there.get(name)}, and the driver {here}; {mend}")
        self._never_began = 0

    def _take(self, reference: Any) -> None:
        task, actor = self._busy.pop(reference)
        try:
            value, failure = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # what came out cannot be sent
            value, failure = None, in_one_line(error.cause)
        except self._ray.exceptions.RayError:
            self._take_death(task, actor)
            return
        self._ended.append(Done(task, value, failure))
        self._idle.append(actor)

    def _take_death(self, task: Task, actor: Any) -> None:
        self._kill(actor)
        self._make()
        self._deaths[task] = self._deaths.get(task, 0) + 1
        if self._deaths[task] < TRIES:
            self._new.appendleft(task)
        else:
            self._ended.append(died(task))

    def _end(self) -> None:
        for actor in (*self._idle, *self._beginning.values(), *(actor for _, actor in self._busy.values())):
            self._kill(actor)

    def _kill(self, actor: Any) -> None:
        with suppress(self._ray.exceptions.RayError):  # it is dead
            self._ray.kill(actor)


def shared_out(cpus: tuple[int, ...], workers: int | None, most: int) -> tuple[int, int]:
    """How many workers there are, and the threads of each, as many as leave room for all of them.

    Args:
        cpus: of each node.
        workers: that are asked for; None for one a CPU.
        most: so many are enough.

    Raises:
        ConfigError: more are asked for than there are CPUs.
    """
    asked = sum(cpus) if workers is None else workers
    if asked > sum(cpus):
        raise ConfigError(f"workers is {asked}, and the cluster has CPUs: {sum(cpus)}; ask for as many or fewer")
    found = min(asked, most)
    return found, next(some for some in range(max(cpus), 0, -1) if sum(each // some for each in cpus) >= found)
