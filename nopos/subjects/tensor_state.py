"""How one tensor was: its memory, what was in it, and its gradient; and when two tensors are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

Name = TypeVar("Name")
Kind = Literal["weights", "hooks", "attributes", "notes"]
KINDS: tuple[Kind, ...] = ("weights", "hooks", "attributes", "notes")
"""What can be changed. `notes` are what a model puts down for itself: its class's private attributes, and gradients."""


@dataclass(frozen=True)
class TensorState:
    """A tensor, and what was in it."""

    value: Tensor
    memory: Tensor
    """The same memory, which other tensors may share."""
    before: Tensor
    """A copy."""
    requires_grad: bool
    gradient: Tensor | None
    where: str
    kind: Kind

    @classmethod
    def of(cls, value: Tensor, where: str, kind: Kind) -> TensorState:
        """As it is now; `where` is its name, and it counts as `kind`."""
        gradient = value.grad if value.is_leaf else None
        copied = None if gradient is None else gradient.clone()
        return cls(value, value.detach(), value.detach().clone(), value.requires_grad, copied, where, kind)

    def changes(self) -> Iterator[tuple[Kind, str]]:
        """What is no longer as it was, and where that is."""
        if not same_tensor(self.value, self.before):
            yield self.kind, self.where
        if self.value.requires_grad != self.requires_grad:
            yield "attributes", joined(self.where, "requires_grad")
        if not self._has_its_gradient():
            yield "notes", joined(self.where, "grad")

    def restore(self) -> None:
        """Put back the memory, what was in it, whether gradients are computed, and the gradient."""
        if self.value.data_ptr() != self.memory.data_ptr() or not same_tensor(self.value, self.before):
            _once(self.memory).copy_(_once(self.before, like=self.memory))
            self.value.data = self.memory
        if self.value.requires_grad != self.requires_grad:
            self.value.requires_grad_(self.requires_grad)
        if not self._has_its_gradient():
            self.value.grad = None if self.gradient is None else self.gradient.clone()

    def _has_its_gradient(self) -> bool:
        now, before = self.value.grad if self.value.is_leaf else None, self.gradient
        return now is before or (now is not None and before is not None and same_tensor(now, before))


def joined(where: str, name: str) -> str:
    """The name of something within something else; of what is within all that there is, its own."""
    return f"{where}.{name}" if where else name


def _once(value: Tensor, *, like: Tensor | None = None) -> Tensor:
    """What an expanded tensor repeats, once: torch writes into no memory that several entries share."""
    strides = (value if like is None else like).stride()
    return value[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)]


def same_tensors(now: Mapping[Name, Tensor], before: Mapping[Name, Tensor]) -> bool:
    """Whether tensors have the same names, types and values."""
    return now.keys() == before.keys() and all(same_tensor(value, before[name]) for name, value in now.items())


def same_tensor(now: Tensor, before: Tensor) -> bool:
    """Whether dense tensors have the same type, shape and values; what is no number in both is the same."""
    if (now.dtype, now.layout, now.device) != (before.dtype, before.layout, before.device) or now.shape != before.shape:
        return False
    return torch.equal(now, before) or bool(torch.isclose(now, before, rtol=0, atol=0, equal_nan=True).all())
