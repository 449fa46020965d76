"""What a claim is evaluated on: a subject, which is any model at all, and the controls on which the claim must fail."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from nopos.errors import ClaimError, require_one_of

Kind = Literal["broken", "other task", "other mechanism", "near miss", "damaged artefact"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_TAKING_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@runtime_checkable
class Subject(Protocol):
    """What the machinery needs of a model; what the claims need of it is between them and the model."""

    @property
    def name(self) -> str:
        """What the model is called."""
        ...

    def solves_the_task(self) -> bool:
        """Whether the model does what it is for, however it does so."""
        ...

    def proven_unchanged(self) -> AbstractContextManager[None]:
        """Raise ClaimError at the end of the block if the block has changed the model."""
        ...

    def record(self) -> dict[str, Any]:
        """What the ledger says of the model, in plain values: `sha256`, `config`, `recipe`, `seed`, `description`."""
        ...


@dataclass(frozen=True, eq=False)
class Control:
    """A subject on which the claims that name it must fail.

    A control is identified by itself and not by its display name, so `eq` is off: two controls of one name in one run
    are two, and each gets a model of its own.

    Raises:
        ClaimError: there is no such kind, or what makes the model is no function, or asks for more than the subject.
    """

    name: str
    lacks: str
    """A phrase on what it is, and on what a good subject has that it lacks."""
    build: Callable[..., Subject]
    """Makes the model. If it has a parameter `subject`, it is made for the subject under test, such as of its size."""
    kind: Kind
    """`broken` does no task, or does it badly; `other task` does another one; `other mechanism` solves the task, but
    not in the way that the claims describe; `near miss` is a good subject but for one thing; `damaged artefact` is a
    good subject with a wrong thing derived from it."""
    made_for: Callable[[Any], str] = attrgetter("name")
    """Of a subject, a text on what of it decides the model that is made for it: subjects of one text share one model.
    By default its name, so that each has a model of its own."""

    def __post_init__(self) -> None:
        """Refuse a kind that there is not, and what cannot make a model."""
        require_one_of(f"the kind of control {self.name}", self.kind, KINDS, error=ClaimError)
        build: object = self.build
        if not callable(build):
            kind = type(build).__name__
            raise ClaimError(f"control {self.name}: build is a value of type {kind}; give the function that makes it")
        if self._needed not in ([], ["subject"]):
            needed = ", ".join(self._needed)
            raise ClaimError(f"control {self.name}: build asks for {needed}; it may ask for subject alone")

    @property
    def is_for_a_subject(self) -> bool:
        """Whether its model is made for the subject under test."""
        return self._needed == ["subject"]

    def key(self, subject: Subject) -> str | None:
        """What of this subject its model is made for; None if it is the same for all.

        Raises:
            ClaimError: `made_for` gives no text.
        """
        if not self.is_for_a_subject:
            return None
        text: object = self.made_for(subject)
        if not isinstance(text, str):
            kind = type(text).__name__
            raise ClaimError(f"control {self.name}: made_for gives a value of type {kind}; it must give a text")
        return text

    @property
    def _needed(self) -> list[str]:
        """The parameters without which the model cannot be made."""
        return [
            name
            for name, parameter in inspect.signature(self.build).parameters.items()
            if parameter.default is parameter.empty and parameter.kind not in _TAKING_ANY
        ]

    def model_for(self, subject: Subject) -> Subject:
        """A model that the control stands for, beside this subject.

        Raises:
            ClaimError: what is made is no subject.
        """
        built: object = self.build(subject=subject) if self.is_for_a_subject else self.build()
        if not isinstance(built, Subject):
            what = "None" if built is None else f"a value of type {type(built).__name__}"
            raise ClaimError(f"control {self.name} builds {what}; it must build a subject, as ModelSubject is")
        return built
