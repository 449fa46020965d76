"""What a sweep will take, by a short calibration on the workers that will do it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nopos.errors import WorkerError
from nopos.populations import work
from nopos.populations.engine import Engine, Task
from nopos.populations.settings import Model
from nopos.training.fused import Kernel


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one model takes, in seconds of a worker while all the others work too, and leaves."""

    train: Mapping[str, float]
    """Seconds, by the name of the setting."""
    check: float
    """Seconds, once a worker has evaluated the controls."""
    size: Mapping[str, int]
    """Bytes, by the name of the setting."""
    controls: dict[str, Any]
    """The ledger of the controls, on which the claims were checked on the way."""
    seconds: float
    """That the calibration took."""

    def training(self, models: Sequence[Model]) -> float:
        """Seconds of a worker that training these takes."""
        return sum(self.train[one.setting.name] for one in models)

    def bytes_of(self, models: Sequence[Model]) -> int:
        """Bytes that these leave."""
        return sum(self.size[one.setting.name] for one in models)


def calibrated(
    engine: Engine, chunks: Sequence[Sequence[Model]], kernels: Mapping[str, Kernel], device: str
) -> Estimate:
    """Time a few steps of every setting and the claims on the reference model, on every worker at the same time.

    The workers are then as much in each other's way as they will be. On the way each evaluates the controls, which it
    would have to do for its first model.

    Args:
        engine: that has nothing to do yet.
        chunks: the models that will be trained, those together that are trained together.
        kernels: by the name of the setting.
        device: where models are trained.

    Raises:
        WorkerError: a worker could not do it.
    """
    start, first = time.perf_counter(), dict[str, Sequence[Model]]()
    for chunk in chunks:
        first.setdefault(chunk[0].setting.name, chunk)  # none of the others is larger
    arguments = (
        [chunk[0].setting.recipe for chunk in first.values()],
        [len(chunk) for chunk in first.values()],
        device,
        [kernels[name] for name in first],
    )
    for _ in range(engine.workers):
        engine.submit(Task(None, work.calibrate, arguments))
    found: list[work.Calibration] = []
    for done in [engine.next() for _ in range(engine.workers)]:
        if done.failure is not None:
            raise WorkerError(f"a worker cannot begin: {done.failure}; no model was made")
        found.append(done.value)
    return Estimate(
        train={name: statistics.fmean(one.train[row] for one in found) for row, name in enumerate(first)},
        check=statistics.fmean(one.check for one in found),
        size=dict(zip(first, found[0].size, strict=True)),
        controls=found[0].controls,
        seconds=time.perf_counter() - start,
    )
