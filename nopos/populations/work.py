"""What a worker does, whichever engine it belongs to: plain values and bytes in, plain values and bytes out.

The controls of a size are evaluated once in a run, by all workers a share each; what came out goes to every worker.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from nopos.claims.ledger import SCHEMA, Ledger
from nopos.claims.outcome import Controls, OnControls, Outcome
from nopos.claims.records import Record, control_entry, planned_record, records
from nopos.claims.verdict import check
from nopos.errors import TrainingError
from nopos.model.config import ModelConfig
from nopos.model.recipes import Recipe
from nopos.storage import checkpoints
from nopos.storage.checkpoints import Serialised
from nopos.storage.files import json_bytes
from nopos.subjects import shipped
from nopos.subjects.shipped import REFERENCE
from nopos.subjects.sizes import size_of, trained
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
    """One for each seed; empty where they could not be trained at once."""
    seconds: float
    """Of all of them."""
    why_none: str | None = None
    """Why not, mostly for want of memory."""


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
    check: list[float]
    """Likewise, once the controls are evaluated."""
    size: list[int]
    """Bytes that a model leaves, by setting."""


@dataclass(frozen=True, kw_only=True)
class ControlsShare:
    """What came out of all claims on some of the controls of a size."""

    known: OnControls
    entries: dict[tuple[int, int], Record]
    """The ledger's, without times: by the number of the control among all and of the claim."""


def train(recipe: Recipe, seeds: Sequence[int], device: str, kernel: Kernel) -> Trained:
    """Train a model of each seed together.

    The fused kernel gives the same bits with any number of threads. Torch's does not, so it gets one, and a sweep gives
    the same models with any number of workers.
    """
    start = time.perf_counter()
    with _threads(torch.get_num_threads() if kernel == "fused" else 1):
        try:
            made = checkpoints.train_together(recipe, seeds, torch.device(device), kernel=kernel)
        except TrainingError as error:  # of all of them
            return Trained(models=[], seconds=time.perf_counter() - start, why_none=str(error))
        models: list[Serialised | Failed] = [
            Failed(reason=str(one), final=True) if isinstance(one, TrainingError) else checkpoints.serialised(one)
            for one in made
        ]
    return Trained(models=models, seconds=time.perf_counter() - start)


def evaluate_controls(size: ModelConfig, share: int, shares: int) -> ControlsShare:
    """Evaluate every claim on some of the controls that are made for models of a size.

    Args:
        size: of the models that are to be checked.
        share: which of them, from 0.
        shares: into how many all controls are divided.

    Raises:
        NoposError: a model of this size cannot be trained, or the claims cannot be read.
    """
    subject, controls, claims = _good(size), Controls(), shipped.shipped_claims()
    outcomes: dict[tuple[str, str, int], Outcome] = {}
    solves: dict[tuple[str, int], bool] = {}
    entries: dict[tuple[int, int], Record] = {}
    for claim in claims:
        controls.plan(claim)
    wanted = dict.fromkeys(control for claim in claims for control in (*claim.refuted_by, *claim.not_measurable_on))
    mine = {control: number for number, control in enumerate(wanted) if number % shares == share}
    with _threads(1):  # as in `check_claims`
        for (row, claim), control in itertools.product(enumerate(claims), mine):
            if control in claim.refuted_by or control in claim.not_measurable_on:
                named, outcome = (control.name, controls.number(control)), controls.outcome(claim, control, subject)
                outcomes[claim.id, *named] = outcome
                if control.kind == "other mechanism" and controls.built(control, subject) is not None:
                    solves[named] = controls.solves_the_task(control, subject)
                entry = control_entry(claim, control, outcome, subject, controls)
                if entry is not None:
                    entries[mine[control], row] = entry | {"claim": _without_times(entry["claim"])}
    return ControlsShare(known=OnControls(outcomes, solves), entries=entries)


def joined(shares: Sequence[ControlsShare]) -> tuple[OnControls, dict[str, Any]]:
    """What came out on all controls of a size, and their ledger: the same however they were divided."""
    ledger, entries = Ledger(), {key: entry for share in shares for key, entry in share.entries.items()}
    for claim in shipped.shipped_claims():
        ledger.plan("", planned_record(claim))  # for the order
    for key in sorted(entries):
        ledger.add(entries[key]["subject"], entries[key]["claim"])
    controls = [record for record in ledger.subjects() if record["role"] != "subject"]
    outcomes = {key: outcome for share in shares for key, outcome in share.known.outcomes.items()}
    solves = {key: found for share in shares for key, found in share.known.solves.items()}
    return OnControls(outcomes, solves), _content(True, controls)


def check_claims(name: str, given: Serialised, known: OnControls) -> Checked:
    """Check every claim on a model.

    Args:
        name: of the model.
        given: its checkpoint.
        known: what came out on the controls of its size.

    Raises:
        NoposError: the bytes are no checkpoint, or the claims cannot be read.
    """
    start = time.perf_counter()
    ledger = _checked(Subject(name, checkpoints.deserialised(name, given)), known)
    return Checked(ledger=_content(ledger.complete, ledger.tested()), seconds=time.perf_counter() - start)


def calibrate(
    recipes: Sequence[Recipe],
    members: Sequence[int],
    device: str,
    kernels: Sequence[Kernel],
    known: Sequence[OnControls],
) -> Calibration:
    """Time a few steps of each recipe, and the claims on a good model of its size.

    Args:
        recipes: of the settings.
        members: how many models of each are trained together.
        device: where.
        kernels: that train them.
        known: what came out on the controls of each one's size.

    Raises:
        TrainingError: there is no memory for so many models.
    """
    of_size: dict[ModelConfig, tuple[float, int]] = {}
    for recipe, on_controls in zip(recipes, known, strict=True):
        size = size_of(recipe.model)
        if size not in of_size:
            start = time.perf_counter()
            ledger = _checked(_good(size), on_controls)
            content = json_bytes(_content(ledger.complete, ledger.tested()))
            of_size[size] = time.perf_counter() - start, len(content)
    checked = [of_size[size_of(recipe.model)] for recipe in recipes]
    timed = [_timed(*each, device) for each in zip(recipes, members, kernels, strict=True)]
    return Calibration(
        train=[taken for taken, _ in timed],
        check=[seconds for seconds, _ in checked],
        size=[of_files + of_ledger for (_, of_files), (_, of_ledger) in zip(timed, checked, strict=True)],
    )


def _good(size: ModelConfig) -> Subject:
    return Subject(REFERENCE, trained(REFERENCE, size))


def _timed(recipe: Recipe, members: int, kernel: Kernel, device: str) -> tuple[float, int]:
    """Seconds a model, and the bytes of its files; where there is no memory for so many at once, of half as many."""
    taken, size = {}, 0
    for steps in (FEW, FEW, MORE):  # what is done first is slow
        short = replace(recipe, train=replace(recipe.train, steps=steps, warmup_steps=0, schedule="constant"))
        result = train(short, range(members), device, kernel)
        while result.why_none is not None and members > 1:
            members = math.ceil(members / 2)
            result = train(short, range(members), device, kernel)
        taken[steps] = result.seconds
        for model in result.models:
            if isinstance(model, Serialised):
                size = len(model.weights) + len(json_bytes(model.manifest)) + BYTES_A_LOSS * recipe.train.steps
    a_step = max(0.0, taken[MORE] - taken[FEW]) / (MORE - FEW)
    return (taken[FEW] + a_step * max(0, recipe.train.steps - FEW)) / members, size


def _checked(subject: Subject, known: OnControls) -> Ledger:
    """Every claim on the subject, without times."""
    ledger, controls, claims = Ledger(), Controls(), shipped.shipped_claims()
    for claim in claims:
        ledger.plan(subject.name, _without_times(planned_record(claim)))
        controls.plan(claim)
    controls.take(known, claims, subject)
    with _threads(1):  # so that sums, and with them all that is measured, are the same beside any number of workers
        for claim in claims:
            for entry in records(check(claim, subject, controls), subject, controls):
                ledger.add(entry["subject"], _without_times(entry["claim"]))
    return ledger


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
