"""Hands out what is to be done to an engine's workers, and alone writes what comes back."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from tqdm.auto import tqdm

from nopos.model.config import ModelConfig
from nopos.populations import work
from nopos.populations.controls import EvaluatedControls, evaluated
from nopos.populations.engine import Done, Engine, Task
from nopos.populations.estimate import Estimate, calibrated
from nopos.populations.folder import Folder
from nopos.populations.settings import Model
from nopos.populations.state import State
from nopos.storage import checkpoints, files
from nopos.storage.checkpoints import Serialised
from nopos.subjects.sizes import in_words, size_of
from nopos.training import trainer

AHEAD = 2
"""So many tasks a worker are under way, so that none waits while the driver writes."""
BAR = "{desc}, {remaining} left |{bar}|"


@dataclass
class Spent:
    """What the workers of one run took."""

    workers: int
    trained: int = 0
    train_seconds: float = 0.0
    """Of workers, those that worked at the same time added up."""
    checked: int = 0
    check_seconds: float = 0.0
    """Likewise."""
    splits: int = 0
    """Of groups that could not be trained together into two that were tried next."""


class Driver:
    """One run of a sweep, from what is missing to its end."""

    def __init__(self, folder: Folder, state: State, engine: Engine, device: str) -> None:
        self._folder, self._state, self._engine, self._device = folder, state, engine, device
        self.spent = Spent(engine.workers)
        self._to_check = deque(state.to_check())
        self._to_train = deque[Sequence[Model]](self._chunks())
        self._controls = EvaluatedControls(known={}, ledgers={}, failures={})
        self._serialised: dict[str, Serialised] = {}
        """Those that were trained now and are still to be checked; others are read."""

    def run(self, say: Callable[[str], None]) -> None:
        """Say what it will take, then have everything done.

        Raises:
            StorageError: something cannot be written; what was written before stays.
            WorkerError: the workers cannot begin.
        """
        start = time.perf_counter()
        self._evaluate_controls()
        if not self._to_train and not self._to_check:
            return
        chunks = list(self._to_train)
        estimate = calibrated(
            self._engine, chunks, list(self._to_check), self._controls.known, self._state.kernels, self._device
        )
        models = [one for chunk in chunks for one in chunk]
        ahead = estimate.training(models) + estimate.checking([*models, *self._to_check])
        say(
            f"about {ahead / self._engine.workers / 60:.1f} minutes and {estimate.bytes_of(models) / 1e6:.1f} MB more, "
            f"with workers: {self._engine.workers}; the calibration took {time.perf_counter() - start:.0f} s"
        )
        with tqdm(total=ahead, bar_format=BAR, disable=None, leave=False, file=sys.stderr) as bar:
            bar.set_description_str(self._state.described())
            for done in self._all_done():
                bar.update(self._take(done, estimate))
                bar.set_description_str(self._state.described(), refresh=False)

    def _evaluate_controls(self) -> None:
        """Have the controls of each size evaluated; models of a size that has none have failed."""
        left = [*(one for chunk in self._to_train for one in chunk), *self._to_check]
        self._controls = evaluated(self._engine, list(dict.fromkeys(_size(one) for one in left)))
        of_all = dict.fromkeys(in_words(_size(one)) for one in self._state.models)
        self._folder.add_controls(self._controls.ledgers, order=list(of_all))
        for model in left:
            if (why_not := self._controls.failures.get(_size(model))) is not None:
                self._fail(model, "checking", why_not, final=False)
        self._to_train = deque(chunk for chunk in self._to_train if _size(chunk[0]) in self._controls.known)
        self._to_check = deque(one for one in self._to_check if _size(one) in self._controls.known)

    def _chunks(self) -> list[list[Model]]:
        """The models that are to be trained, those together that train together; no worker gets more than its share."""
        chunks: list[list[Model]] = []
        for name, group in groupby(self._state.to_train(), key=lambda one: one.setting.name):
            models = list(group)
            recipe, device = models[0].setting.recipe, torch.device(self._device)
            most = trainer.members_at_once(recipe.model, recipe.train, device, self._state.kernels[name])
            if device.type == "cuda":  # whose memory the workers share
                most = max(1, most // self._engine.workers)
            at_once = min(most, math.ceil(len(models) / self._engine.workers))
            chunks += [models[first : first + at_once] for first in range(0, len(models), at_once)]
        return chunks

    def _all_done(self) -> Iterator[Done]:
        """Everything that was to be done, as it ends."""
        under_way = 0
        while True:
            while under_way < AHEAD * self._engine.workers and (task := self._next_task()) is not None:
                self._engine.submit(task)
                under_way += 1
            if not under_way:
                return
            yield self._engine.next()
            under_way -= 1

    def _next_task(self) -> Task | None:
        """Checks first: what is trained is soon complete, and few models are in memory."""
        if self._to_check:
            model = self._to_check.popleft()
            given = self._serialised.pop(model.name, None)
            if given is None:
                given = checkpoints.serialised(checkpoints.load(self._folder.weights(model)))
            known = self._controls.known[_size(model)]
            return Task([model], work.check_claims, (model.name, given, known))
        if self._to_train:
            models = self._to_train.popleft()
            setting, seeds = models[0].setting, [one.seed for one in models]
            return Task(models, work.train, (setting.recipe, seeds, self._device, self._state.kernels[setting.name]))
        return None

    def _take(self, done: Done, estimate: Estimate) -> float:
        """Write what a task brought; how much of what was estimated is done by it, in seconds."""
        models: list[Model] = done.task.of
        if done.task.function is work.check_claims:
            self._take_checked(models[0], done)
            return estimate.checking(models)
        why_not_together = done.failure or done.value.why_none
        if why_not_together is not None and len(models) > 1:
            self._split(models, why_not_together)
            return 0.0
        self._take_trained(models, done)
        unchecked = [one for one in models if one.name in self._state.failures]
        return estimate.training(models) + estimate.checking(unchecked)

    def _split(self, models: Sequence[Model], reason: str) -> None:
        """Have the two halves of a group that could not be trained together trained next."""
        half = math.ceil(len(models) / 2)
        self._to_train.extendleft((models[half:], models[:half]))
        self.spent.splits += 1
        self._folder.note(
            {"model": models[0].name, "event": "split", "members": len(models), "into": half, "reason": reason}
        )

    def _take_trained(self, models: Sequence[Model], done: Done) -> None:
        why_not = done.failure or done.value.why_none
        if why_not is not None:
            for model in models:
                self._fail(model, "training", why_not, final=False)
            return
        result: work.Trained = done.value
        self.spent.trained += len(models)
        self.spent.train_seconds += result.seconds
        seconds = round(result.seconds / len(models), 3)
        for model, made in zip(models, result.models, strict=True):
            if isinstance(made, work.Failed):
                self._fail(model, "training", made.reason, final=made.final)
                continue
            self._folder.save(model, made)
            self._state.digests[model.name] = digest = files.sha256(made.weights)
            self._folder.note({"model": model.name, "event": "trained", "sha256": digest, "seconds": seconds})
            self._serialised[model.name] = made
            self._to_check.append(model)

    def _take_checked(self, model: Model, done: Done) -> None:
        if done.failure is not None:
            self._fail(model, "checking", done.failure, final=False)
            return
        result: work.Checked = done.value
        self.spent.checked += 1
        self.spent.check_seconds += result.seconds
        self._folder.write(self._folder.ledger(model), result.ledger)
        self._state.checked.add(model.name)
        self._folder.note({"model": model.name, "event": "checked", "seconds": round(result.seconds, 3)})

    def _fail(self, model: Model, during: str, reason: str, *, final: bool) -> None:
        event = {"model": model.name, "event": "failed", "during": during, "reason": reason, "final": final}
        self._state.failures[model.name] = event
        self._folder.note(event)


def _size(model: Model) -> ModelConfig:
    """That of a model, for which its controls are made."""
    return size_of(model.setting.recipe.model)
