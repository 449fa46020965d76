"""Any torch models as a subject: what claims ask of them is measured once, and a change of them is found and mended."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nopos.errors import ClaimError
from nopos.subjects.snapshot import Snapshot, same_tensor

MISSING = object()
R = TypeVar("R")


class ModelSubject:
    """One or several models, and what they are read on.

    Nothing of it can be replaced or added, and what is changed in place is found and mended.
    """

    __slots__ = ("_data", "_models", "_name", "_recorded", "_results", "_snapshots", "_solves", "_tensors")

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
            data: likewise what they are read on, such as `tokens`. Tensors are held to stay as they are.
            solves_the_task: the analysis that says whether the model does what it is for.
            record: what the ledger says of the model, in plain values: `description`, `config`, `recipe`, `seed`, or
                some of them. Its sha256 is that of all weights and buffers.

        Raises:
            ClaimError: there is no `model`, or one name stands for two things.
        """
        if "model" not in models:
            raise ClaimError(f"{name}: has {', '.join(models) or 'no models'}; one of its models must be called model")
        both = [one for one in models if one in data]
        if both:
            raise ClaimError(f"{name}: {both[0]!r} is a model and data too; give each a name of its own")
        self._name, self._models, self._data = name, dict(models), dict(data)
        self._solves, self._recorded = solves_the_task, dict(record or {})
        self._note()

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
            ClaimError: an option is not hashable.
        """
        __tracebackhide__ = True  # where an analysis fails, pytest shows the analysis
        offered = self._models | self._data
        arguments = {name: offered[name] for name in _parameters(analysis) if name in offered} | options
        if self._changed():
            return analysis(**arguments)
        key = (analysis, tuple(sorted(options.items(), key=lambda option: option[0])))
        try:
            result = self._results.get(key, MISSING)
        except TypeError as error:
            raise ClaimError(f"options of {analysis.__name__} cannot be remembered ({error}); give tuples") from None
        if result is MISSING:
            with self._unchanging():
                result = analysis(**arguments)
            if not any(isinstance(option, Tensor) for option in options.values()):
                self._results[key] = result
        copied: R = deepcopy(result)  # so that nobody edits what the next one is given
        return copied

    def solves_the_task(self) -> bool:
        """Whether the model does what it is for, however it does so."""
        return bool(self.run(self._solves))

    def record(self) -> dict[str, Any]:
        """What identifies the subject in a ledger, as plain values."""
        return {"sha256": _sha256(self.model)} | self._recorded

    @contextmanager
    def proven_unchanged(self) -> Iterator[None]:
        """Check that models and data come out as they went in; if not, mend them and say so.

        Raises:
            ClaimError: something was changed.
        """
        try:
            yield
        finally:
            changed = self._changed()
            if changed:
                self._mend()
        if changed:
            raise ClaimError(
                f"{self._name}: a test changed its {' and '.join(changed)}; a test must leave a subject as it was"
            )

    def _note(self) -> None:
        """Take down how all is, and forget what was measured."""
        self._results: dict[tuple[Any, ...], Any] = {}
        self._snapshots = {name: Snapshot(model, apart_from=self._memory()) for name, model in self._models.items()}
        self._tensors = {name: value.clone() for name, value in self._data.items() if isinstance(value, Tensor)}

    def _mend(self) -> None:
        """Put everything back to how it was, in place."""
        for snapshot in self._snapshots.values():
            snapshot.restore()
        self._data |= {name: kept.clone() for name, kept in self._tensors.items()}
        self._results.clear()

    def _changed(self) -> list[str]:
        """What is no longer as it was."""
        of_models = {name: snapshot.changed() for name, snapshot in self._snapshots.items()}
        changed = [
            "weights" if name == "model" else f"{name} model" for name, what in of_models.items() if "weights" in what
        ]
        changed += [name for name, kept in self._tensors.items() if not same_tensor(self._tensor(name), kept)]
        return changed + [what for what in ("hooks", "attributes") if any(what in each for each in of_models.values())]

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
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@cache
def _parameters(analysis: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(analysis).parameters)
