"""What a model consists of, taken down once, so that every later change of it is found."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

TENSORS = ("_parameters", "_buffers")
"""Where torch keeps a module's tensors."""


class Snapshot:
    """The tensors, hooks and attributes of all modules of a model, as they were when it was made.

    Whatever can be set on a module counts: a number that its forward pass uses, another function for its forward
    pass, a hook on a module that is no hook point.
    """

    def __init__(self, model: nn.Module, *, apart_from: Collection[str] = ()) -> None:
        """Take down all of a model but the attributes of these names."""
        self._modules = tuple(model.modules())
        self._not_compared = {*apart_from, *TENSORS}
        self._tensors = [{name: value.detach().clone() for name, value in _tensors(module)} for module in self._modules]
        self._attributes = [
            {name: copy(value) if isinstance(value, dict | list | set) else value for name, value in self._of(module)}
            for module in self._modules
        ]

    def changed(self) -> set[str]:
        """What is no longer as it was: of `weights`, `hooks` and `attributes`."""
        changed = set[str]()
        for module, tensors, attributes in zip(self._modules, self._tensors, self._attributes, strict=True):
            if not same_tensors(dict(_tensors(module)), tensors):
                changed.add("weights")
            now = dict(self._of(module))
            for name in now.keys() | attributes.keys():
                if not _alike(now.get(name, TENSORS), attributes.get(name, TENSORS)):
                    changed.add("hooks" if "hooks" in name else "attributes")
        return changed

    def _of(self, module: nn.Module) -> Iterator[tuple[str, Any]]:
        return ((name, value) for name, value in vars(module).items() if name not in self._not_compared)


def same_tensors(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the same names, types and values, to the last bit."""
    return now.keys() == before.keys() and all(
        value.dtype == before[name].dtype and torch.equal(value, before[name]) for name, value in now.items()
    )


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for kind in TENSORS:
        yield from ((name, value) for name, value in vars(module)[kind].items() if value is not None)


def _alike(now: object, before: object) -> bool:
    return now is before or (type(now) is type(before) and not isinstance(now, Tensor) and bool(now == before))
