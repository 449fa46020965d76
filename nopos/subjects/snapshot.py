"""What a model consists of, taken down once, so that every later change of it is found."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Name = TypeVar("Name")
TENSORS = ("_parameters", "_buffers")
"""Where torch keeps a module's tensors."""


class Snapshot:
    """The tensors, hooks and attributes of all modules of a model, as they were when it was made.

    Whatever can be set on a module counts: a number that its forward pass uses, another function for its forward
    pass, a hook on a module that is no hook point.
    """

    def __init__(self, model: nn.Module, *, apart_from: Collection[str] = ()) -> None:
        """Take down all of a model but what is put into the containers of these names."""
        self._modules = tuple(model.modules())
        self._tensors = {key: value.detach().clone() for key, value in self._tensors_now().items()}
        self._attributes = [dict(vars(module)) for module in self._modules]
        self._contents = [
            {
                name: copy(value)
                for name, value in vars(module).items()
                if _is_container(value) and name not in apart_from
            }
            for module in self._modules
        ]
        self._compared = [
            {name: contents.get(name, value) if name not in TENSORS else value for name, value in attributes.items()}
            for attributes, contents in zip(self._attributes, self._contents, strict=True)
        ]

    def changed(self) -> set[str]:
        """What is no longer as it was: of `weights`, `hooks` and `attributes`."""
        changed = set[str]()
        if not same_tensors(self._tensors_now(), self._tensors):
            changed.add("weights")
        for module, before in zip(self._modules, self._compared, strict=True):
            now = vars(module)
            if not _alike(now, before):
                names = [name for name in now.keys() | before.keys() if not _alike(now.get(name), before.get(name))]
                changed |= {"hooks" if "hooks" in name else "attributes" for name in names}
        return changed

    def restore(self) -> None:
        """Put all of it back in place: the same modules with the same tensors, attributes and hooks."""
        for module, attributes, contents in zip(self._modules, self._attributes, self._contents, strict=True):
            now = vars(module)
            now.clear()
            now.update(attributes)
            for name, content in contents.items():  # into the container itself, which a hook's handle knows
                now[name].clear()
                now[name].extend(content) if isinstance(content, list) else now[name].update(content)
        for key, value in self._tensors_now().items():
            value.data = self._tensors[key].clone()

    def _tensors_now(self) -> dict[tuple[int, str], Tensor]:
        """By the number of the module and the tensor's name in it."""
        return {
            (number, name): value
            for number, module in enumerate(self._modules)
            for kind in TENSORS
            for name, value in vars(module)[kind].items()
            if value is not None
        }


def _is_container(value: object) -> bool:
    return isinstance(value, dict | list | set)


def _alike(now: object, before: object) -> bool:
    try:
        return bool(now == before)
    except RuntimeError:  # a tensor stands where none stood: torch compares it entry by entry
        return False


def same_tensors(now: Mapping[Name, Tensor], before: Mapping[Name, Tensor]) -> bool:
    """Whether tensors have the same names, types and values, to the last bit."""
    return now.keys() == before.keys() and all(same_tensor(value, before[name]) for name, value in now.items())


def same_tensor(now: Tensor, before: Tensor) -> bool:
    """Whether tensors have the same type and values, to the last bit."""
    return now.dtype == before.dtype and torch.equal(now, before)
