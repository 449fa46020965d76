"""Any torch models as a subject: what claims ask of them is measured once, and a change of them is found and mended."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any, TypeVar, no_type_check

import torch
from torch import Tensor, nn

from nopos.errors import ClaimError
from nopos.subjects.requirements import (
    called,
    require_answer,
    require_arguments,
    require_dense,
    require_models_and_data,
    require_record,
)
from nopos.subjects.snapshot import Snapshot
from nopos.subjects.tensor_state import Kind

MISSING = object()
R = TypeVar("R")


class ModelSubject:
    """One or several models, and what they are read on.

    Nothing of it can be replaced or added, and what is changed in place is found and mended. What a model puts down for
    itself while it is read, in private attributes of its class and as gradients, is no change: it is put back before
    the next analysis.
    """

    __slots__ = ("_data", "_models", "_name", "_recorded", "_results", "_sha256", "_snapshots", "_solves")
    _name: str
    _models: dict[str, nn.Module]
    _data: dict[str, object]
    _solves: Callable[..., bool]
    _recorded: dict[str, Any]
    _sha256: str

    @no_type_check  # what it is given is checked, in words for users
    def __init__(
        self,
        name: str,
        models: Mapping[str, nn.Module],
        data: Mapping[str, object],
        *,
        solves_the_task: Callable[..., bool],
        record: Mapping[str, Any] | None = None,
    ) -> None:
        """Take in models as they are; they are not copied.

        Args:
            name: what the subject is called.
            models: by the names under which an analysis asks for them, `model` first of all.
            data: likewise what they are read on, such as `tokens`. Tensors and numpy arrays, and dicts and lists of
                them, are held to stay as they are.
            solves_the_task: the analysis that says whether the model does what it is for.
            record: what the ledger says of the model, in plain values: `description`, `config`, `recipe`, `seed`, or
                some of them. Unless they are given, its sha256 is that of all weights and buffers, and its description
                the name of the model's class.

        Raises:
            ClaimError: there is no `model`, one name stands for two things, or one of these is not what it must be.
        """
        require_models_and_data(name, models, data)
        require_record(name, record)
        self._name, self._models, self._data = name, dict(models), dict(data)
        self._solves, self._recorded, self._sha256 = solves_the_task, dict(record or {}), ""
        require_arguments(name, solves_the_task, self._offered, {}, what="solves_the_task")
        self._note()
        for one, snapshot in self._snapshots.items():
            require_dense(name, one, snapshot.tensors())

    @property
    def name(self) -> str:
        """What the subject is called."""
        return self._name

    @property
    def model(self) -> nn.Module:
        """The model under test."""
        return self._models["model"]

    def run(self, analysis: Callable[..., R], **options: Any) -> R:
        """The result of an analysis of this model, computed once for each set of options.

        The analysis is handed what it asks for by the names of its parameters: the subject's models and data. An option
        of one of these names comes before the subject's own. A result is not remembered on a changed model, nor where
        an option is a tensor, which can change.

        Raises:
            ClaimError: the analysis asks for what there is not or has no such option, an option is not hashable, or
                the result cannot be copied.
        """
        __tracebackhide__ = True  # where an analysis fails, pytest shows the analysis
        arguments = require_arguments(self._name, analysis, self._offered, options, what=called(analysis))
        changes = self._changes()
        if self._reported(changes):
            return analysis(**arguments)
        key = (analysis, tuple(sorted(options.items(), key=lambda option: option[0])))
        try:
            result = self._results.get(key, MISSING)
        except TypeError as error:
            problem = f"{self._name}: options of {called(analysis)} cannot be remembered ({error})"
            raise ClaimError(f"{problem}; give tuples") from None
        if result is MISSING:
            self._put_back(changes)
            with self._unchanging():
                result = analysis(**arguments)
            if not any(isinstance(option, Tensor) for option in options.values()):
                self._results[key] = result
        try:
            copied: R = deepcopy(result)  # so that nobody edits what the next one is given
        except (RuntimeError, TypeError) as error:
            why = str(error).partition(".")[0]
            raise ClaimError(
                f"{self._name}: what {called(analysis)} gives cannot be copied ({why}); "
                "give numbers, or tensors without a graph of gradients, as torch.no_grad() makes them"
            ) from None
        return copied

    def solves_the_task(self) -> bool:
        """Whether the model does what it is for, however it does so.

        Raises:
            ClaimError: the analysis that says so gives neither True nor False.
        """
        return require_answer(self._name, self.run(self._solves))

    def record(self) -> dict[str, Any]:
        """What identifies the subject in a ledger, as plain values."""
        self._sha256 = self._sha256 or _sha256(self.model)
        return {"description": type(self.model).__name__, "sha256": self._sha256} | self._recorded

    @contextmanager
    def proven_unchanged(self) -> Iterator[None]:
        """Check that models and data come out as they went in; if not, mend them and say so.

        Raises:
            ClaimError: something was changed.
        """
        try:
            yield
        finally:
            changes = self._changes()
            changed = self._reported(changes)
            if changed:
                self._mend()
            else:
                self._put_back(changes)
        if changed:
            raise ClaimError(
                f"{self._name}: a test changed its {' and '.join(changed)}; a test must leave a subject as it was"
            )

    def _note(self) -> None:
        """Take down how all is, and forget what was measured."""
        self._results: dict[tuple[Any, ...], Any] = {}
        self._snapshots = {name: Snapshot(value, apart_from=self._memory()) for name, value in self._offered.items()}

    def _mend(self) -> None:
        """Put everything back to how it was, in place."""
        for snapshot in self._snapshots.values():
            snapshot.restore()
        self._results.clear()

    def _put_back(self, changes: Mapping[str, object]) -> None:
        """What models have put down for themselves."""
        for name in changes:
            self._snapshots[name].restore()

    def _changes(self) -> dict[str, dict[Kind, str]]:
        """What is no longer as it was, and where, of each model and each piece of data of which something is not."""
        found = {name: snapshot.changed() for name, snapshot in self._snapshots.items()}
        return {name: changed for name, changed in found.items() if changed}

    def _reported(self, changes: Mapping[str, Mapping[Kind, str]]) -> list[str]:
        """Those of the changes that a test has made, in words."""
        of_models = {name: changed for name, changed in changes.items() if name in self._models}
        named = [
            f"{'weights' if name == 'model' else f'{name} model'} ({self._of_weights(name, changed['weights'])})"
            for name, changed in of_models.items()
            if "weights" in changed
        ]
        for name, changed in changes.items():
            if name in self._data:
                first = next(iter(changed.values()))
                named.append(f"{name} ({first})" if first else name)
        for what in ("hooks", "attributes"):
            where = [f"{name}.{changed[what]}" for name, changed in of_models.items() if what in changed]
            named += [f"{what} ({', '.join(where)})"] if where else []
        return named

    def _of_weights(self, name: str, where: str) -> str:
        """Where weights have changed, and why buffers do that without any test's doing."""
        module, _, buffer = where.rpartition(".")
        owner = dict(self._models[name].named_modules()).get(module)
        learns = owner is not None and owner.training and buffer in dict(owner.named_buffers(recurse=False))
        return f"{where}; its module is in training mode, call .eval()" if learns else where

    @property
    def _offered(self) -> dict[str, object]:
        """What an analysis may ask for."""
        return {**self._models, **self._data}

    def _tensor(self, name: str) -> Tensor:
        value = self._data[name]
        assert isinstance(value, Tensor)
        return value

    def _memory(self) -> tuple[str, ...]:
        """Attributes of models into which they may put things while they are read."""
        return ()

    def _unchanging(self) -> AbstractContextManager[None]:
        """What an analysis runs within: no weight changes there, and no hook but by edits that are undone."""
        return nullcontext()


def _sha256(model: nn.Module) -> str:
    """Of the names, types and values of all weights and buffers, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
