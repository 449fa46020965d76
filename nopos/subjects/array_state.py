"""How one numpy array was, and when two arrays are the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nopos.subjects.tensor_state import Kind


@dataclass(frozen=True)
class ArrayState:
    """An array, and what was in it."""

    value: NDArray[Any]
    before: NDArray[Any]
    """A copy; of an array of objects, with the same objects."""
    is_writeable: bool
    where: str
    kind: Kind

    @classmethod
    def of(cls, value: NDArray[Any], where: str, kind: Kind) -> ArrayState:
        """As it is now; `where` is its name, and it counts as `kind`."""
        return cls(value, value.copy(), value.flags.writeable, where, kind)

    def changes(self) -> Iterator[tuple[Kind, str]]:
        """Where it is, if it is no longer as it was."""
        if self.value.flags.writeable != self.is_writeable or not same_array(self.value, self.before):
            yield self.kind, self.where

    def restore(self) -> None:
        """Put back its type, its shape, what was in it, and whether it can be written into."""
        with suppress(ValueError):  # numpy may not write: the memory is another's, and put back where that is held
            if not same_array(self.value, self.before):
                self.value.setflags(write=True)
                if self.value.dtype != self.before.dtype:
                    self.value.dtype = self.before.dtype  # type: ignore[misc]
                if self.value.shape != self.before.shape:
                    self.value.resize(self.before.shape, refcheck=False)
                self.value[...] = self.before
            if self.value.flags.writeable != self.is_writeable:
                self.value.setflags(write=self.is_writeable)


def same_array(now: NDArray[Any], before: NDArray[Any]) -> bool:
    """Whether arrays have the same type, shape and values; what is no number in both is the same.

    Objects are the same where they are the same one: what is changed within one is found there.
    """
    if (now.dtype, now.shape) != (before.dtype, before.shape):
        return False
    return (not now.dtype.hasobject and np.array_equal(now, before)) or now.tobytes() == before.tobytes()
