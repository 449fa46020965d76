"""What a model or a piece of data consists of, taken down once, so that every later change of it is found."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from nopos.subjects.array_state import ArrayState
from nopos.subjects.tensor_state import KINDS, Kind, TensorState, joined, same_tensor

TENSORS = ("_parameters", "_buffers")
"""Where torch keeps a module's tensors."""
OF_TORCH = frozenset(vars(nn.Module()))
"""The attributes that every module has."""
HOOK_THEMSELVES = ("transformer_lens.model_bridge.", "transformers.")
"""The parts of libraries whose models put hooks on themselves while they are read. No analysis has its hooks there."""
MISSING = object()
_Seen = tuple[object, str, Kind, bool]
"""Something, where it is, what it counts as, and whether it is in a container."""


class Snapshot:
    """Tensors, arrays and what holds them, as they were: modules with hooks, attributes and configs, dicts and lists.

    Whatever can be set on a module counts: a number that its forward pass uses, another function for its forward
    pass, a hook on a module that is no hook point, an entry of a list. A module counts also where torch does not know
    of it, as where one is kept in a list.
    """

    def __init__(self, value: object, *, apart_from: Collection[str] = ()) -> None:
        """Take down all of a model, or of data, but what is put into the attributes of these names."""
        self._apart_from = frozenset(apart_from)
        self._owners: dict[int, _Owner] = {}
        self._containers: dict[int, _Container] = {}
        self._tensors: dict[int, TensorState] = {}
        self._arrays: dict[int, ArrayState] = {}
        waiting: list[_Seen] = [(value, "", "attributes", True)]
        while waiting:
            waiting += reversed(list(self._take_down(*waiting.pop())))
        for owner in self._owners.values():
            owner.expect(self._containers)

    def changed(self) -> dict[Kind, str]:
        """What is no longer as it was, in the order of KINDS, and where the first change of each kind is."""
        found: dict[Kind, str] = {}
        for kind, where in self._changes():
            found.setdefault(kind, where)
        return {kind: found[kind] for kind in KINDS if kind in found}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors, gradients included, and where they are."""
        for state in self._tensors.values():
            yield state.where, state.value
            if state.gradient is not None:
                yield joined(state.where, "grad"), state.gradient

    def restore(self) -> None:
        """Put all of it back in place: the same modules with the same tensors, attributes and hooks."""
        for owner in self._owners.values():
            owner.restore()
        for container in self._containers.values():
            container.restore()
        for tensor in self._tensors.values():
            tensor.restore()
        for array in self._arrays.values():
            array.restore()

    def _take_down(self, value: object, where: str, kind: Kind, is_nested: bool) -> Iterator[_Seen]:
        """Keep how one thing is; gives what it holds. What is held in two ways counts by the weightier one."""
        states = (self._owners, self._containers, self._tensors, self._arrays)
        known = next((state[id(value)] for state in states if id(value) in state), None)
        if known is not None and KINDS.index(known.kind) <= KINDS.index(kind):
            return
        if isinstance(value, Tensor):
            kind = "weights" if isinstance(value, nn.Parameter) else kind
            self._tensors[id(value)] = TensorState.of(value, where, kind)
        elif isinstance(value, np.ndarray):
            self._arrays[id(value)] = ArrayState.of(value, where, kind)
            if value.dtype == object:
                yield from _entries(value.ravel().tolist(), where, kind)
        elif isinstance(value, dict | list | set):
            self._containers[id(value)] = _Container(value, value.copy(), where, kind, is_nested)
            yield from _entries(value, where, kind)
        elif isinstance(value, tuple):
            yield from _entries(list(value), where, kind)
        elif _has_attributes(value, where):
            self._owners[id(value)] = owner = _Owner(value, where)
            for name, held in owner.attributes.items():
                if name not in self._apart_from:
                    yield held, joined(where, name), owner.kind_of(name), False

    def _changes(self) -> Iterator[tuple[Kind, str]]:
        for owner in self._owners.values():
            for name, now, before in owner.differences():
                if not self._is_alike(owner.kind_of(name), now, before):
                    within = self._first_unlike(now, before) if name in TENSORS else None
                    yield owner.kind_of(name), joined(owner.where, within or name)
        for container in self._containers.values():
            if container.is_nested and not _alike(container.value, container.before):
                yield container.kind, container.where
        for tensor in self._tensors.values():
            yield from tensor.changes()
        for array in self._arrays.values():
            yield from array.changes()

    def _is_alike(self, kind: Kind, now: object, before: object) -> bool:
        """Whether no more differs than that a tensor is a copy, or that a library's model has hooked itself."""
        if not isinstance(now, dict) or not isinstance(before, dict):
            return False
        if kind == "hooks":
            return _alike(_by_analyses(now), _by_analyses(before))
        return now.keys() == before.keys() and all(self._same(now[name], before[name]) for name in now)

    def _first_unlike(self, now: object, before: object) -> str | None:
        """The name of the first of a module's tensors that is another one, gone or new."""
        if not isinstance(now, dict) or not isinstance(before, dict):
            return None
        names = [*before, *(name for name in now if name not in before)]
        return next((one for one in names if not self._same(now.get(one, MISSING), before.get(one, MISSING))), None)

    def _same(self, now: object, before: object) -> bool:
        if isinstance(now, Tensor) and isinstance(before, Tensor):
            known = self._tensors.get(id(before))
            return now is before or (known is not None and same_tensor(now, known.before))
        return _alike(now, before)


class _Owner:
    """A module or a config, and its attributes as they were."""

    kind: Kind = "attributes"

    def __init__(self, value: Any, where: str) -> None:
        self.value, self.where, self.type, self.attributes = value, where, type(value), dict(vars(value))
        self._expected: dict[str, object] = self.attributes

    def expect(self, containers: Mapping[int, _Container]) -> None:
        """Compare what its dicts and lists hold, not whether they are the same ones."""
        kept = {name: containers.get(id(value)) for name, value in self.attributes.items()}
        self._expected = self.attributes | {name: one.before for name, one in kept.items() if one is not None}

    def kind_of(self, name: str) -> Kind:
        """What an attribute of this name counts as. All of a config is what its model is set by."""
        if not issubclass(self.type, nn.Module):
            return "attributes"
        if name in TENSORS:
            return "weights"
        is_private = name.startswith("_")
        if "hooks" in name and (name in OF_TORCH or not is_private):
            return "hooks"
        return "notes" if is_private and name not in ("_modules", "__class__") else "attributes"

    def differences(self) -> Iterator[tuple[str, object, object]]:
        """Names of attributes that are not what they were, with what they are and what they were."""
        now, before = vars(self.value), self._expected
        if type(self.value) is not self.type:
            yield "__class__", type(self.value), self.type
        if not _alike(now, before):
            for name in [*before, *(name for name in now if name not in before)]:
                if not _alike(now.get(name, MISSING), before.get(name, MISSING)):
                    yield name, now.get(name, MISSING), before.get(name, MISSING)

    def restore(self) -> None:
        if type(self.value) is not self.type:
            self.value.__class__ = self.type
        now = vars(self.value)
        now.clear()
        now.update(self.attributes)


@dataclass(frozen=True)
class _Container:
    """A dict, list or set, and what was in it."""

    value: Any
    before: Any
    where: str
    kind: Kind
    is_nested: bool
    """Whether it is in another, or is all that there is; else its owner's attributes are compared with `before`."""

    def restore(self) -> None:
        """Into the container itself, which a hook's handle knows."""
        if not _alike(self.value, self.before):
            self.value.clear()
            self.value.extend(self.before) if isinstance(self.value, list) else self.value.update(self.before)


def _has_attributes(value: object, where: str) -> bool:
    """Whether what is set on it sets the model: modules do, and configs, which are dataclasses or called so.

    What only says that it is a module, as a weak reference does, is none.
    """
    is_config = is_dataclass(value) or where.rpartition(".")[2] in ("config", "cfg", "generation_config")
    return issubclass(type(value), nn.Module) or (
        is_config and hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value)
    )


def _entries(container: dict[Any, Any] | list[Any] | set[Any], where: str, kind: Kind) -> Iterator[_Seen]:
    """The entries that can be changed in place; a module's tensors and modules are where the module is."""
    if where.endswith(("_modules", *TENSORS)):
        where = where.rpartition(".")[0]
    numbered = container.items() if isinstance(container, dict) else enumerate(container)
    for name, value in numbered:
        if isinstance(value, Tensor | np.ndarray | dict | list | set | tuple) or issubclass(type(value), nn.Module):
            yield value, joined(where, str(name)), kind, True


def _by_analyses(hooks: Mapping[Any, Any]) -> dict[Any, Any]:
    """The hooks that are not of a library's own making."""
    return {
        number: hook
        for number, hook in hooks.items()
        if not str(getattr(hook, "__module__", "")).startswith(HOOK_THEMSELVES)
    }


def _alike(now: object, before: object) -> bool:
    try:
        return now is before or bool(now == before)
    except (RuntimeError, ValueError):  # a tensor or an array stands where none stood: it is compared entry by entry
        return False
