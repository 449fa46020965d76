"""What a sweep will take, by a short calibration on the workers that will do it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nopos.claims.outcome import OnControls
from nopos.errors import WorkerError
from nopos.model.config import ModelConfig
from nopos.populations import work
from nopos.populations.engine import Engine, Task
from nopos.populations.settings import Model
from nopos.subjects.sizes import size_of
from nopos.training.fused import Kernel


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one model takes, in seconds of a worker while all the others work too, and leaves."""

    train: Mapping[str, float]
    """Seconds, by the name of the setting."""
    check: Mapping[str, float]
    """Likewise, once the controls are evaluated."""
    size: Mapping[str, int]
    """Bytes, by the name of the setting."""
    known: Mapping[ModelConfig, OnControls]
    """What came out on the controls, by the size of the models that they are for."""
    controls: list[dict[str, Any]]
    """The ledgers of the controls, one for each size."""
    seconds: float
    """That the calibration took."""

    def training(self, models: Sequence[Model]) -> float:
        """Seconds of a worker that training these takes."""
        return sum(self.train[one.setting.name] for one in models)

    def checking(self, models: Sequence[Model]) -> float:
        """Seconds of a worker that checking these takes."""
        return sum(self.check[one.setting.name] for one in models)

    def bytes_of(self, models: Sequence[Model]) -> int:
        """Bytes that these leave."""
        return sum(self.size[one.setting.name] for one in models)


def calibrated(
    engine: Engine,
    chunks: Sequence[Sequence[Model]],
    to_check: Sequence[Model],
    kernels: Mapping[str, Kernel],
    device: str,
) -> Estimate:
    """Evaluate the controls, then time a few steps and the claims on a model of every setting, on every worker.

    The workers do so at the same time: they are then as much in each other's way as they will be.

    Args:
        engine: that has nothing to do yet.
        chunks: the models that will be trained, those together that are trained together.
        to_check: those that are trained already.
        kernels: by the name of the setting.
        device: where models are trained.

    Raises:
        WorkerError: a worker could not do it.
    """
    start, first = time.perf_counter(), dict[str, Sequence[Model]]()
    for chunk in (*chunks, *([one] for one in to_check)):
        first.setdefault(chunk[0].setting.name, chunk)  # none of the others is larger
    recipes = [chunk[0].setting.recipe for chunk in first.values()]
    known, controls = dict[ModelConfig, OnControls](), list[dict[str, Any]]()
    sizes = list(dict.fromkeys(size_of(recipe.model) for recipe in recipes))
    wanted = [(size, share, engine.workers) for size in sizes for share in range(engine.workers)]
    shares = _each(engine, work.evaluate_controls, wanted)
    for row, size in enumerate(sizes):
        of_size = shares[row * engine.workers : (row + 1) * engine.workers]
        known[size], ledger = work.joined(of_size)
        controls.append(ledger)
    arguments = (
        recipes,
        [len(chunk) for chunk in first.values()],
        device,
        [kernels[name] for name in first],
        [known[size_of(recipe.model)] for recipe in recipes],
    )
    found: list[work.Calibration] = _each(engine, work.calibrate, [arguments] * engine.workers)
    return Estimate(
        train={name: statistics.fmean(one.train[row] for one in found) for row, name in enumerate(first)},
        check={name: statistics.fmean(one.check[row] for one in found) for row, name in enumerate(first)},
        size=dict(zip(first, found[0].size, strict=True)),
        known=known,
        controls=controls,
        seconds=time.perf_counter() - start,
    )


def _each(engine: Engine, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What a function gives for each of some arguments, run by whichever worker is free."""
    for number, each in enumerate(arguments):
        engine.submit(Task(number, function, each))
    found: dict[int, Any] = {}
    for done in [engine.next() for _ in arguments]:
        if done.failure is not None:
            raise WorkerError(f"a worker cannot begin: {done.failure}; no model was made")
        found[done.task.of] = done.value
    return [found[number] for number in range(len(arguments))]
