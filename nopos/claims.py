"""A claim: a sentence that could be false, a measurement, a bound, and a model on which the sentence is false.

A claim is an ordinary test under `@claim`. Its body asserts comparisons of measured values. It is evaluated on the
subject and on each of its controls, by one code path: a measured comparison records its truth and lets the body run to
its end, so the verdict is made from the whole record, and a claim that its controls cannot refute is an error.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pytest

from nopos.errors import ClaimError
from nopos.measure import Comparison, Measure

if TYPE_CHECKING:
    from nopos.controls import Control
    from nopos.subject import Subject

Rung = Literal["behavioural", "correlational", "causal", "constructive"]
Verdict = Literal["holds", "refuted", "error", "not run"]
RUNGS: tuple[Rung, ...] = ("behavioural", "correlational", "causal", "constructive")
_ATTRIBUTE = "__nopos_claim__"

Test = TypeVar("Test", bound=Callable[..., None])


@dataclass(frozen=True)
class Claim:
    """What `@claim` says of a test."""

    statement: str
    """The docstring's first paragraph."""
    rung: Rung
    """What the evidence can carry."""
    source: str
    """The notebook step or paper that the sentence comes from."""
    expect: Literal["holds", "refuted"]
    refuted_by: tuple[Control, ...]
    holds_on: tuple[Control, ...]

    @property
    def controls(self) -> tuple[Control, ...]:
        """All subjects that the claim is evaluated on beside the one under test."""
        return (*self.refuted_by, *self.holds_on)


@dataclass(frozen=True)
class Outcome:
    """A claim evaluated on one subject."""

    subject: str
    comparisons: tuple[Comparison, ...]
    seconds: float
    exception: BaseException | None = None

    @property
    def verdict(self) -> Verdict:
        """An exception of any kind is an error, never a refutation."""
        if self.exception is not None:
            return "error"
        return "refuted" if self.false else "holds"

    @property
    def false(self) -> dict[str, Comparison]:
        """The comparisons that came out false, by name."""
        return {comparison.name: comparison for comparison in self.comparisons if not comparison.holds}

    @property
    def compared(self) -> list[tuple[str, str]]:
        """Which names were compared with which bounds."""
        return [(comparison.name, comparison.bound) for comparison in self.comparisons]

    @property
    def error(self) -> str | None:
        """Type and message of the exception, if there was one."""
        return None if self.exception is None else f"{type(self.exception).__name__}: {self.exception}"


def claim(
    *,
    rung: Rung,
    source: str,
    refuted_by: Sequence[Control] = (),
    expect: Literal["holds", "refuted"] = "holds",
    holds_on: Sequence[Control] = (),
) -> Callable[[Test], Test]:
    """Mark a test as a claim.

    Args:
        rung: what the evidence can carry. Above `behavioural` it must tell the model from one that solves the task by
            another mechanism.
        source: notebook step or paper.
        refuted_by: controls; each comparison must come out false on at least one of them.
        expect: `refuted` keeps a believed sentence that measurement refutes.
        holds_on: with `expect="refuted"`, subjects on which the sentence is true.

    Raises:
        ClaimError: the claim breaks a rule that can be seen without running it.
    """

    def mark(test: Test) -> Test:
        __tracebackhide__ = True
        statement = inspect.cleandoc(test.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        marked = Claim(statement, rung, source, expect, tuple(refuted_by), tuple(holds_on))
        problems = _mark_problems(test, marked) or _body_problems(test)
        if problems:
            raise ClaimError(f"{test.__name__}: {'; '.join(problems)}")
        setattr(test, _ATTRIBUTE, marked)
        return test

    return mark


def claim_of(test: object) -> Claim | None:
    """What `@claim` said of a test, if it was marked."""
    return getattr(test, _ATTRIBUTE, None)


def evaluate(test: Callable[..., None], subject: Subject, arguments: dict[str, Any]) -> Outcome:
    """Run a claim's body on one subject and say what came out. Only Ctrl-C and `pytest.exit` pass through."""
    measure, start = Measure(), time.perf_counter()
    exception: BaseException | None = None
    try:
        with subject.proven_unchanged():
            test(**{**arguments, "subject": subject, "measure": measure})
        measure.close()
    except (pytest.skip.Exception, pytest.xfail.Exception) as outcome:
        exception = ClaimError(f"a claim may not skip or xfail ({outcome.msg}); it holds or it is refuted")
    except (Exception, pytest.fail.Exception) as error:
        exception = error
    return Outcome(subject.name, measure.made, time.perf_counter() - start, exception)


def unexpected(marked: Claim, outcome: Outcome) -> list[str]:
    """In what the outcome on a subject differs from the verdict that the claim expects; empty when in nothing."""
    if outcome.error is not None:
        return [outcome.error]
    if marked.expect == "refuted":
        return [] if outcome.false else ["holds, though measurement was expected to refute it"]
    return [f"refuted: {comparison.describe()}" for comparison in outcome.false.values()]


def toothlessness(
    marked: Claim, on_subject: Outcome, on_controls: dict[str, Outcome], *, other_mechanisms: Iterable[str]
) -> list[str]:
    """Why the controls do not show that this claim can fail; empty when they do.

    Args:
        marked: the claim.
        on_subject: the outcome on the subject under test.
        on_controls: the outcome on each control by its name.
        other_mechanisms: names of the controls that solve the task by another mechanism.
    """
    if on_subject.exception is not None:
        return []  # it is wrong already, and most errors come again on every control
    controls = on_controls.values()
    problems = [
        f"control {control.subject}: {control.error}; an error is never a refutation"
        for control in controls
        if control.error
    ]
    if problems:
        return problems
    problems += [
        f"compares other names or bounds on {control.subject} than on {on_subject.subject}; they must be the same"
        for control in controls
        if control.compared != on_subject.compared
    ]
    if marked.expect == "refuted":
        problems += [
            f"does not hold on {control.name}, where it must: {comparison.describe()}"
            for control in marked.holds_on
            for comparison in on_controls[control.name].false.values()
        ]
    else:
        told = ", ".join(on_controls)
        problems += [
            f"cannot tell {on_subject.subject} from {told}: {name!r} is false on none of them"
            for name, _ in on_subject.compared
            if not any(name in control.false for control in controls)
        ]
    return problems + _blindness(marked, on_controls, set(other_mechanisms))


def _blindness(marked: Claim, on_controls: dict[str, Outcome], other_mechanisms: set[str]) -> list[str]:
    """A claim about the mechanism must tell it from another that is as good at the task."""
    if marked.rung == "behavioural":
        return []
    told_apart = "holds" if marked.expect == "refuted" else "refuted"
    if any(on_controls[name].verdict == told_apart for name in other_mechanisms):
        return []
    return [
        f"cannot tell the mechanism from being good at the task: a {marked.rung} claim must come out {told_apart} on a "
        "control that solves the task by another mechanism"
    ]


def _mark_problems(test: Callable[..., None], marked: Claim) -> list[str]:
    from nopos.controls import Control

    problems = []
    if not marked.statement:
        problems.append("has no docstring; it must say in plain English what the name claims")
    if not marked.source:
        problems.append("has no source; name the notebook step or the paper")
    if marked.rung not in RUNGS:
        problems.append(f"rung is {marked.rung!r}; it must be one of {', '.join(RUNGS)}")
    if marked.expect not in ("holds", "refuted"):
        problems.append(f"expect is {marked.expect!r}; it must be holds or refuted")
    elif marked.expect == "holds" and (not marked.refuted_by or marked.holds_on):
        problems.append("needs refuted_by, and no holds_on: name the controls on which the sentence is false")
    elif marked.expect == "refuted" and (not marked.holds_on or marked.refuted_by):
        problems.append("needs holds_on, and no refuted_by: name a subject on which the refuted sentence is true")
    strangers: list[object] = [control for control in marked.controls if type(control) is not Control]
    if strangers:
        problems.append(f"names {strangers[0]!r} as a control; give a Control, such as nopos.controls.UNTRAINED")
    elif len({control.name for control in marked.controls}) < len(marked.controls):
        problems.append("names a control twice")
    if not {"subject", "measure"} <= set(inspect.signature(test).parameters):
        problems.append("must take subject and measure")
    return problems


def _body_problems(test: Callable[..., None]) -> list[str]:
    """Every assert is `assert measure(...) < bound`, and `measure` stands nowhere else."""
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(test))).body
    parts = list(ast.walk(function))
    asserts = [node for node in parts if isinstance(node, ast.Assert)]
    allowed = {id(name) for name in map(_measured, asserts) if name is not None}
    problems = [
        f"`assert {ast.unparse(node.test)}` is not of the form assert measure(...) < bound"
        for node in asserts
        if _measured(node) is None
    ]
    problems += [
        f"line {name.lineno} uses measure outside an assert; only assert measure(...) < bound counts"
        for name in parts
        if isinstance(name, ast.Name) and name.id == "measure" and id(name) not in allowed
    ]
    if sum(isinstance(node, ast.arg) and node.arg == "measure" for node in parts) > 1:
        problems.append("has an inner function with a measure of its own; there is only one")
    if not asserts:
        problems.append("asserts nothing; a claim needs at least one measured comparison")
    return problems


def _measured(node: ast.Assert) -> ast.Name | None:
    """The name `measure` in `assert measure(...) < bound`; None for an assert of another form."""
    match node.test:
        case ast.Compare(
            left=ast.Call(func=ast.Name(id="measure") as name),
            ops=[ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE() | ast.Eq() | ast.NotEq()],
        ):
            return name
        case _:
            return None
