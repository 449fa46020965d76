"""What a claim is about: a property of a subject without which the claim says nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nopos.errors import ClaimError


@dataclass(frozen=True, eq=False)
class Scope:
    """A property that a subject must have for a claim to be about it.

    It is asked of subjects alone: controls are always measured. Outside it the verdict is `out of scope`, which is no
    pass and no failure, and is counted apart.

    Raises:
        ClaimError: it does not say what is needed, or `has` is no function.
    """

    needs: str
    """A phrase that the reason ends with, such as `two layers or more`."""
    has: Callable[[Any], bool]
    """Whether a subject has the property. It reads what the claim does not assert: a size, or a measurement."""

    def __post_init__(self) -> None:
        """Refuse what no reason can be made of, or what cannot be asked."""
        needs: object = self.needs
        if not isinstance(needs, str) or not needs:
            raise ClaimError(f"a scope needs {needs!r}; give a phrase that says what of a subject is needed")
        has: object = self.has
        if not callable(has):
            kind = type(has).__name__
            raise ClaimError(f"the scope {needs!r}: has is a value of type {kind}; give a function of a subject")


def reasons_against(scope: Sequence[Scope], subject: object) -> list[str]:
    """Why a subject is out of scope, a reason for each property that it lacks; empty if it has them all.

    Raises:
        ClaimError: a property is answered with something else than True or False.
    """
    reasons = []
    for one in scope:
        answer: object = one.has(subject)
        if not isinstance(answer, bool):
            raise ClaimError(
                f"the scope {one.needs!r} gives a value of type {type(answer).__name__}; give True or False"
            )
        if not answer:
            reasons.append(f"needs {one.needs}")
    return reasons
