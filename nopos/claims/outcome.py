"""A claim evaluated on one model, and what one run keeps of the models on which its claims must fail."""

from __future__ import annotations

import time
from bdb import BdbQuit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pytest

from nopos.claims.claim import Claim
from nopos.claims.control import Control, Subject
from nopos.claims.measure import Comparison, Measure
from nopos.errors import ClaimError, NotMeasurableError


@dataclass(frozen=True)
class Outcome:
    """A claim evaluated on one model."""

    subject: str
    comparisons: tuple[Comparison, ...]
    """Those that were made, in order; after an exception, those made before it."""
    seconds: float
    exception: BaseException | None = None

    @property
    def verdict(self) -> Literal["holds", "refuted", "not measurable", "error"]:
        """An exception is an error, never a refutation; NotMeasurableError says that nothing can be measured."""
        if isinstance(self.exception, NotMeasurableError):
            return "not measurable"
        if self.exception is not None:
            return "error"
        return "refuted" if self.false else "holds"

    @property
    def false(self) -> dict[str, Comparison]:
        """The comparisons that came out false, by name."""
        return {comparison.name: comparison for comparison in self.comparisons if not comparison.holds}

    @property
    def compared(self) -> list[tuple[str, str, float]]:
        """Which names were compared with which bounds: name, operator and limit."""
        return [(comparison.name, comparison.operator, comparison.limit) for comparison in self.comparisons]

    @property
    def error(self) -> str | None:
        """Type and message of the exception, if there was one."""
        return None if self.exception is None else f"{type(self.exception).__name__}: {self.exception}"


def evaluate(claim: Claim, subject: Subject) -> Outcome:
    """Run a claim's body on one model and say what came out. Only Ctrl-C and what ends the process pass through."""
    measure, start = Measure(), time.perf_counter()

    def run() -> None:
        with subject.proven_unchanged():
            claim.body(subject=subject, measure=measure)
        measure.close()

    exception = raised_by(run)
    return Outcome(subject.name, measure.made, time.perf_counter() - start, exception)


def raised_by(action: Callable[[], object]) -> BaseException | None:
    """What an action raised, if it raised; only Ctrl-C and what ends the process or the session pass through."""
    try:
        action()
    except (KeyboardInterrupt, SystemExit, GeneratorExit, BdbQuit, pytest.exit.Exception):
        raise
    except Exception as error:
        return error
    except BaseException as ending:  # what pytest's skip, xfail and fail raise
        return ClaimError(f"a claim may not skip or xfail ({ending}); it holds or it is refuted")
    return None


@dataclass(frozen=True)
class OnControls:
    """What came out of claims on controls, as values that can be pickled: for another process that need not build them.

    A control is known by its name and number.
    """

    outcomes: Mapping[tuple[str, str, int], Outcome]
    """By the claim's id, and the control's name and number."""
    solves: Mapping[tuple[str, int], bool]
    """Of controls that solve the task by another mechanism or should: whether they do."""


class Controls:
    """What one run keeps: each control built once, and each claim evaluated once on each of its controls.

    A control is known by itself, not by its name. A claim is known by its id and its function, so that one that was
    defined anew under the old id is evaluated anew. A control that is made for a subject is built, and evaluated, once
    for each of those texts that its `made_for` gives.
    """

    def __init__(self) -> None:
        self._subjects: dict[_Built, Subject] = {}
        self._outcomes: dict[tuple[_Built, str, object], Outcome] = {}
        self._solves: dict[_Built, bool] = {}
        self._of_name: dict[str, list[Control]] = {}

    def subject(self, control: Control, beside: Subject) -> Subject:
        """The control's model, built the first time it is wanted.

        Args:
            control: which.
            beside: the subject under test, by which a control may be made.
        """
        key = _key(control, beside)
        if key not in self._subjects:
            with beside.proven_unchanged():
                self._subjects[key] = control.model_for(beside)
        return self._subjects[key]

    def number(self, control: Control) -> int:
        """Which of the controls of its name it is, from 1, in the order in which this was asked or claims were planned.

        All that their records say can be the same of two controls: one checkpoint, edited in two ways.
        """
        of_name = self._of_name.setdefault(control.name, [])
        if control not in of_name:
            of_name.append(control)
        return of_name.index(control) + 1

    def plan(self, claim: Claim) -> None:
        """Number the controls of a claim that is to run: processes that plan the same claims number them alike."""
        for control in (*claim.refuted_by, *claim.not_measurable_on):
            self.number(control)

    def built(self, control: Control, beside: Subject) -> Subject | None:
        """The control's model if it has been built; None if it has not, or cannot be."""
        if raised_by(lambda: _key(control, beside)) is not None:
            return None
        return self._subjects.get(_key(control, beside))

    def outcome(self, claim: Claim, control: Control, beside: Subject) -> Outcome:
        """What comes out of a claim on a control; a control that cannot be built is an error like any other."""
        error = raised_by(lambda: _key(control, beside))
        if error is not None:
            return Outcome(control.name, (), 0.0, error)
        key = (_key(control, beside), claim.id, claim.function)
        if key not in self._outcomes:
            error = raised_by(lambda: self.subject(control, beside))
            if error is not None:
                self._outcomes[key] = Outcome(control.name, (), 0.0, error)
            else:
                self._outcomes[key] = evaluate(claim, self.subject(control, beside))
        return self._outcomes[key]

    def take(self, known: OnControls, claims: Sequence[Claim], beside: Subject) -> None:
        """Take in what came out elsewhere of claims on the controls that are made for such a subject.

        Claims must have been planned in the same order there and here, which gives controls their numbers.
        """
        for claim in claims:
            for control in (*claim.refuted_by, *claim.not_measurable_on):
                named = control.name, self.number(control)
                if (claim.id, *named) in known.outcomes:
                    outcome = known.outcomes[claim.id, *named]
                    self._outcomes[_key(control, beside), claim.id, claim.function] = outcome
                if named in known.solves:
                    self._solves[_key(control, beside)] = known.solves[named]

    def solves_the_task(self, control: Control, beside: Subject) -> bool:
        """Whether the control's model does what it is for, asked once."""
        key = _key(control, beside)
        if key not in self._solves:
            self._solves[key] = self.subject(control, beside).solves_the_task()
        return self._solves[key]


_Built = tuple[Control, str | None]
"""A control, and what of the subject its model is made for if it is made for one."""


def _key(control: Control, beside: Subject) -> _Built:
    return control, control.key(beside)
