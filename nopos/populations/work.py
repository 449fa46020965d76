"""What a worker does, whichever engine it belongs to: plain values and bytes in, plain values and bytes out.

A worker lives long and keeps what every model needs: the claims, and the controls with all that was measured on them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from nopos.claims.ledger import SCHEMA, Ledger
from nopos.claims.outcome import Controls
from nopos.claims.records import Record, planned_record, records
from nopos.claims.verdict import check
from nopos.errors import TrainingError
from nopos.model.recipes import Recipe
from nopos.storage import checkpoints
from nopos.storage.checkpoints import Serialised
from nopos.storage.files import json_bytes
from nopos.subjects import controls as shipped_controls
from nopos.subjects import shipped
from nopos.subjects.subject import Subject
from nopos.training.fused import Kernel

FEW, MORE = 2, 12
"""Steps of the two trainings of a calibration: their difference is of steps alone, without what comes before them."""
BYTES_A_LOSS = 22
"""Of a step's loss in a manifest, about."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A model that could not be trained."""

    reason: str
    final: bool
    """Whether it would go the same way again: a model that diverged does, memory that ran out may be there later."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came out of training some seeds together."""

    models: list[Serialised | Failed]
    """One for each seed."""
    seconds: float
    """Of all of them."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What came out of checking every claim on one model, without times: the same model gives the same again."""

    ledger: dict[str, Any]
    """As `nopos verify --json` has it, with the one subject."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the work takes on this machine, while as many workers as asked this do so at the same time."""

    train: list[float]
    """Seconds a model, by setting."""
    check: float
    """Seconds a model, once the controls are evaluated."""
    size: list[int]
    """Bytes that a model leaves, by setting."""
    controls: dict[str, Any]
    """The ledger of the controls."""


def train(recipe: Recipe, seeds: Sequence[int], device: str, kernel: Kernel) -> Trained:
    """Train a model of each seed together.

    The fused kernel gives the same bits with any number of threads. Torch's does not, so it gets one, and a sweep gives
    the same models with any number of workers.
    """
    start = time.perf_counter()
    with _threads(torch.get_num_threads() if kernel == "fused" else 1):
        try:
            trained = checkpoints.train_together(recipe, seeds, torch.device(device), kernel=kernel)
        except TrainingError as error:  # of all of them: memory
            models: list[Serialised | Failed] = [Failed(reason=str(error), final=False) for _ in seeds]
        else:
            models = [
                Failed(reason=str(one), final=True) if isinstance(one, TrainingError) else checkpoints.serialised(one)
                for one in trained
            ]
    return Trained(models=models, seconds=time.perf_counter() - start)


def check_claims(name: str, given: Serialised) -> Checked:
    """Check every claim on a model.

    Raises:
        NoposError: the bytes are no checkpoint, or the claims cannot be read.
    """
    start = time.perf_counter()
    ledger, _ = _checked(Subject(name, checkpoints.deserialised(name, given)))
    return Checked(ledger=_content(ledger.complete, ledger.tested()), seconds=time.perf_counter() - start)


def calibrate(recipes: Sequence[Recipe], members: Sequence[int], device: str, kernels: Sequence[Kernel]) -> Calibration:
    """Time a few steps of each recipe and the claims on the reference model; the controls are then evaluated.

    Args:
        recipes: of the settings.
        members: how many models of each are trained together.
        device: where.
        kernels: that train them.

    Raises:
        TrainingError: there is no memory for so many models.
    """
    ledger, seconds = _checked(shipped_controls.reference())
    controls = [record for record in ledger.subjects() if record["role"] != "subject"]
    size = len(json_bytes(_content(ledger.complete, ledger.tested())))
    timed = [_timed(*each, device) for each in zip(recipes, members, kernels, strict=True)]
    return Calibration(
        train=[taken for taken, _ in timed],
        check=seconds,
        size=[size + of_files for _, of_files in timed],
        controls=_content(True, controls),
    )


def _timed(recipe: Recipe, members: int, kernel: Kernel, device: str) -> tuple[float, int]:
    """Seconds a model, and the bytes of its files."""
    taken, size = {}, 0
    for steps in (FEW, FEW, MORE):  # what is done first is slow
        short = replace(recipe, train=replace(recipe.train, steps=steps, warmup_steps=0, schedule="constant"))
        trained = train(short, range(members), device, kernel)
        taken[steps] = trained.seconds
        for model in trained.models:
            if isinstance(model, Serialised):
                size = len(model.weights) + len(json_bytes(model.manifest)) + BYTES_A_LOSS * recipe.train.steps
    a_step = max(0.0, taken[MORE] - taken[FEW]) / (MORE - FEW)
    return (taken[FEW] + a_step * max(0, recipe.train.steps - FEW)) / members, size


@cache
def _controls() -> Controls:
    """This worker's: each control is built once in it, and each claim evaluated once on each of its controls."""
    return Controls()


def _checked(subject: Subject) -> tuple[Ledger, float]:
    """Every claim on the subject and on each of its controls, without times; and the seconds that the subject took."""
    ledger, controls, seconds = Ledger(), _controls(), 0.0
    claims = shipped.shipped_claims()
    for claim in claims:
        ledger.plan(subject.name, _without_times(planned_record(claim)))
    with _threads(1):  # so that sums, and with them all that is measured, are the same beside any number of workers
        for claim in claims:
            verdict = check(claim, subject, controls)
            seconds += verdict.seconds
            for entry in records(verdict, subject, controls):
                ledger.add(entry["subject"], _without_times(entry["claim"]))
    return ledger, seconds


def _without_times(claim: Record) -> Record:
    return {name: value for name, value in claim.items() if name != "seconds"}


def _content(complete: bool, subjects: list[Record]) -> dict[str, Any]:
    return {"schema": SCHEMA, "complete": complete, "subjects": subjects}


@contextmanager
def _threads(wanted: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
