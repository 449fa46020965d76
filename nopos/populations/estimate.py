"""What a sweep will take, by a short calibration on the workers that will do it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nopos.claims.outcome import OnControls
from nopos.errors import WorkerError
from nopos.model.config import ModelConfig
from nopos.populations import work
from nopos.populations.engine import Engine, each_done
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
    known: Mapping[ModelConfig, OnControls],
    kernels: Mapping[str, Kernel],
    device: str,
) -> Estimate:
    """Time a few steps and the claims on a model of every setting, on every worker.

    The workers do so at the same time: they are then as much in each other's way as they will be.

    Args:
        engine: that has nothing to do yet.
        chunks: the models that will be trained, those together that are trained together.
        to_check: those that are trained already.
        known: what came out on the controls, by the size of the models that they are for.
        kernels: by the name of the setting.
        device: where models are trained.

    Raises:
        WorkerError: a worker could not do it.
    """
    first: dict[str, Sequence[Model]] = {}
    for chunk in (*chunks, *([one] for one in to_check)):
        first.setdefault(chunk[0].setting.name, chunk)  # none of the others is larger
    recipes = [chunk[0].setting.recipe for chunk in first.values()]
    arguments = (
        recipes,
        [len(chunk) for chunk in first.values()],
        device,
        [kernels[name] for name in first],
        [known[size_of(recipe.model)] for recipe in recipes],
    )
    found: list[work.Calibration] = []
    for done in each_done(engine, work.calibrate, [arguments] * engine.workers):
        if done.failure is not None:
            raise WorkerError(f"the calibration failed: {done.failure}; this run made no model")
        found.append(done.value)
    return Estimate(
        train={name: statistics.fmean(one.train[row] for one in found) for row, name in enumerate(first)},
        check={name: statistics.fmean(one.check[row] for one in found) for row, name in enumerate(first)},
        size=dict(zip(first, found[0].size, strict=True)),
    )
