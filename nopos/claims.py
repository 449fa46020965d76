"""A claim: a sentence that could be false, a measurement, a bound, and a model on which the sentence is false.

A claim is an ordinary test under `@claim`. Its body asserts comparisons of measured values. It is evaluated on the
subject and on each of its controls, by one code path: a measured comparison records its truth and lets the body run to
its end, so the verdict is made from the whole record, and a claim that its controls cannot refute is an error.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import pytest

from nopos.errors import ClaimError

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
class Comparison:
    """One measured comparison. `margin` is the distance to the bound in the value's unit, negative when it is false."""

    name: str
    value: float
    unit: str
    bound: str
    margin: float
    holds: bool


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
        return "holds" if all(comparison.holds for comparison in self.comparisons) else "refuted"

    @property
    def false(self) -> dict[str, Comparison]:
        """The comparisons that came out false, by name."""
        return {comparison.name: comparison for comparison in self.comparisons if not comparison.holds}


@dataclass
class Measure:
    """Gives values their names and keeps what they are compared with; the `measure` of a claim's body."""

    comparisons: list[Comparison] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    def __call__(self, name: str, value: float, unit: str = "") -> Measured:
        """A float that remembers the first comparison made with it.

        Raises:
            ClaimError: the value is not a finite number, or the name was used before.
        """
        if name in self._names:
            raise ClaimError(f"{name!r} is measured twice; each measurement needs a name of its own")
        self._names.add(name)
        return Measured(_finite(name, value), name=name, unit=unit, record=self.comparisons)


class Measured(float):
    """A measured value. Comparing it records the truth and returns True, so that the body runs to its end."""

    __slots__ = ("_name", "_record", "_unit")

    def __new__(cls, value: float, **_: Any) -> Measured:
        return super().__new__(cls, value)

    def __init__(self, _: float, *, name: str, unit: str, record: list[Comparison]) -> None:
        self._name, self._unit, self._record = name, unit, record

    def __lt__(self, bound: float) -> bool:
        return self._compare("<", bound, lambda value, limit: (value < limit, limit - value))

    def __le__(self, bound: float) -> bool:
        return self._compare("<=", bound, lambda value, limit: (value <= limit, limit - value))

    def __gt__(self, bound: float) -> bool:
        return self._compare(">", bound, lambda value, limit: (value > limit, value - limit))

    def __ge__(self, bound: float) -> bool:
        return self._compare(">=", bound, lambda value, limit: (value >= limit, value - limit))

    def __eq__(self, bound: object) -> bool:
        return self._compare("==", bound, lambda value, limit: (value == limit, -abs(value - limit)))

    def __ne__(self, bound: object) -> NoReturn:
        raise ClaimError(f"{self._name!r} is compared with !=, which almost any value passes; compare it with a bound")

    def __bool__(self) -> NoReturn:
        raise ClaimError(f"{self._name!r} is used without a bound; compare it with one")

    __hash__ = None  # type: ignore[assignment]

    def _compare(self, operator: str, bound: object, decide: Callable[[float, float], tuple[bool, float]]) -> bool:
        limit = _finite(f"the bound of {self._name}", bound)
        if any(comparison.name == self._name for comparison in self._record):
            raise ClaimError(f"{self._name!r} is compared twice; measure each comparison under a name of its own")
        holds, margin = decide(float(self), limit)
        self._record.append(Comparison(self._name, float(self), self._unit, f"{operator} {limit:.10g}", margin, holds))
        return True


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
        rung: what the evidence can carry. Above `behavioural` a control that solves the task must refute the claim.
        source: notebook step or paper.
        refuted_by: controls; each comparison must come out false on at least one of them.
        expect: `refuted` keeps a believed sentence that measurement refutes.
        holds_on: with `expect="refuted"`, subjects on which the sentence is true.

    Raises:
        ClaimError: the claim breaks a rule that can be seen without running it.
    """

    def mark(test: Test) -> Test:
        statement = inspect.cleandoc(test.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        marked = Claim(statement, rung, source, expect, tuple(refuted_by), tuple(holds_on))
        for problem in _problems(test, marked):
            raise ClaimError(f"{test.__name__}: {problem}")
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
        if not measure.comparisons:
            raise ClaimError("nothing was compared; a claim needs at least one measured comparison")
    except (pytest.skip.Exception, pytest.xfail.Exception) as outcome:
        exception = ClaimError(f"a claim may not skip or xfail ({outcome.msg}); it holds or it is refuted")
    except (Exception, pytest.fail.Exception) as error:
        exception = error
    return Outcome(subject.name, tuple(measure.comparisons), time.perf_counter() - start, exception)


def unexpected(marked: Claim, outcome: Outcome) -> list[str]:
    """In what the outcome on a subject differs from the verdict that the claim expects; empty when in nothing."""
    if outcome.exception is not None:
        return [f"{type(outcome.exception).__name__}: {outcome.exception}"]
    if marked.expect == "refuted":
        return [] if outcome.false else ["holds, though measurement was expected to refute it"]
    return [f"refuted: {describe(comparison)}" for comparison in outcome.false.values()]


def toothlessness(
    marked: Claim, on_subject: Outcome, on_controls: dict[str, Outcome], *, solving: set[str]
) -> list[str]:
    """Why the controls do not show that this claim can fail; empty when they do.

    Args:
        on_subject: the outcome on the subject under test.
        on_controls: the outcome on each control by its name.
        solving: the names of the controls that solve the task.
    """
    problems = [
        f"control {name}: {type(outcome.exception).__name__}: {outcome.exception}; an error is never a refutation"
        for name, outcome in on_controls.items()
        if outcome.exception is not None
    ]
    problems += [
        f"does not hold on {control.name}, where it must: {describe(comparison)}"
        for control in marked.holds_on
        for comparison in on_controls[control.name].false.values()
    ]
    if problems or marked.expect == "refuted":
        return problems
    outcomes = [on_controls[control.name] for control in marked.refuted_by]
    compared = [comparison.name for outcome in (on_subject, *outcomes) for comparison in outcome.comparisons]
    for name in dict.fromkeys(compared):
        if not any(name in outcome.false for outcome in outcomes):
            told = ", ".join(outcome.subject for outcome in outcomes)
            problems.append(f"cannot tell {on_subject.subject} from {told}: {name!r} is false on none of them")
    if marked.rung != "behavioural" and not any(outcome.false for outcome in outcomes if outcome.subject in solving):
        problems.append(
            f"cannot tell the mechanism from being good at the task: a {marked.rung} claim must be refuted by a "
            "control that solves the task another way"
        )
    return problems


def describe(comparison: Comparison) -> str:
    """`name: got value unit, expected bound`."""
    unit = f" {comparison.unit}" if comparison.unit else ""
    return f"{comparison.name}: got {comparison.value:.6g}{unit}, expected {comparison.bound}"


def _finite(name: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ClaimError(f"{name} is {value!r}; it must be a number") from None
    if not math.isfinite(number):
        raise ClaimError(f"{name} is {number}; it must be finite")
    return number


def _problems(test: Callable[..., None], marked: Claim) -> list[str]:
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
    names = [control.name for control in marked.controls]
    if len(set(names)) < len(names):
        problems.append("names a control twice")
    if not {"subject", "measure"} <= set(inspect.signature(test).parameters):
        problems.append("must take subject and measure")
    return problems or _body_problems(test)


def _body_problems(test: Callable[..., None]) -> list[str]:
    """Every assert is `assert measure(...) < bound`, and `measure` stands nowhere else."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(test)))
    allowed: set[int] = set()
    problems = []
    asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    for node in asserts:
        condition = node.test
        if (
            isinstance(condition, ast.Compare)
            and len(condition.ops) == 1
            and isinstance(condition.left, ast.Call)
            and isinstance(condition.left.func, ast.Name)
            and condition.left.func.id == "measure"
        ):
            allowed.add(id(condition.left.func))
        else:
            problems.append(f"`assert {ast.unparse(condition)}` is not of the form assert measure(...) < bound")
    problems += [
        f"line {name.lineno} uses measure outside an assert; only assert measure(...) < bound counts"
        for name in ast.walk(tree)
        if isinstance(name, ast.Name) and name.id == "measure" and id(name) not in allowed
    ]
    if not asserts:
        problems.append("asserts nothing; a claim needs at least one measured comparison")
    return problems
