"""Measured values: floats that record what they are compared with, so that a verdict is made from the record."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from nopos.errors import ClaimError


@dataclass(frozen=True)
class Comparison:
    """One measured comparison. `margin` is the distance to the limit in the value's unit, negative when it is false."""

    name: str
    value: float
    unit: str
    operator: str
    limit: float
    margin: float
    holds: bool

    def describe(self) -> str:
        """`name: got value unit, expected operator limit`."""
        got = f"{self.name}: got {rounded(self.value, self.limit, digits=6)} {self.unit}".rstrip()
        return f"{got}, expected {self.operator} {self.limit!r}"


def rounded(value: float, limit: float, *, digits: int) -> str:
    """The value to so many digits, or to as many more as it takes to see on which side of the limit it lies."""
    for more in range(digits, 18):
        text = f"{value:.{more}g}"
        if (float(text) < limit, float(text) > limit) == (value < limit, value > limit):
            return text
    return repr(value)


class Measure:
    """Gives values their names and keeps what they are compared with; the `measure` of a claim's body."""

    def __init__(self, *, fail_at: str | None = None, message: str = "") -> None:
        """Begin with no comparison.

        Args:
            fail_at: a measurement whose comparison shall raise AssertionError, so that it is seen where it stands.
            message: of that AssertionError.
        """
        self._fail_at, self._message = fail_at, message
        self._comparisons: dict[str, Comparison | None] = {}
        self._first_error: ClaimError | None = None

    def __call__(self, name: str, value: object, unit: str = "") -> Measured:
        """A float that records the comparison made with it.

        Raises:
            ClaimError: the value is not a finite number, or the name was used before.
        """
        __tracebackhide__ = True
        if name in self._comparisons:
            self.reject(f"{name!r} is measured twice; each measurement needs a name of its own")
        number = self.finite(name, value)
        self._comparisons[name] = None
        return Measured(number, name=name, unit=unit, measure=self)

    def record(self, comparison: Comparison) -> None:
        """Take in the one comparison of a measurement."""
        __tracebackhide__ = True
        if self._comparisons[comparison.name] is not None:
            self.reject(f"{comparison.name!r} is compared twice; measure each comparison under a name of its own")
        self._comparisons[comparison.name] = comparison
        if comparison.name == self._fail_at:
            raise AssertionError(self._message)

    def close(self) -> tuple[Comparison, ...]:
        """All comparisons, in the order of their measurements.

        Raises:
            ClaimError: an error that the body swallowed, a value that was never compared, or no comparison at all.
        """
        if self._first_error is not None:
            raise self._first_error
        for name, comparison in self._comparisons.items():
            if comparison is None:
                self.reject(f"{name!r} is measured and never compared; compare it with a bound")
        if not self._comparisons:
            self.reject("nothing was compared; a claim needs at least one measured comparison")
        return self.made

    @property
    def made(self) -> tuple[Comparison, ...]:
        """The comparisons made so far."""
        return tuple(comparison for comparison in self._comparisons.values() if comparison is not None)

    def reject(self, problem: str) -> NoReturn:
        """Raise a misuse as an error, and remember it in case the body swallows it."""
        __tracebackhide__ = True
        error = ClaimError(problem)
        self._first_error = self._first_error or error
        raise error

    def finite(self, name: str, value: object) -> float:
        """The value as a float, rejected unless it is a finite number."""
        __tracebackhide__ = True
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            self.reject(f"{name} is {value!r}; it must be a number")
        if not math.isfinite(number):
            self.reject(f"{name} is {number}; it must be finite")
        return number


def _comparing(
    operator: str, decide: Callable[[float, float], tuple[bool, float]]
) -> Callable[[Measured, object], bool]:
    """The method of an operator, which records the truth and the margin that `decide` gives."""

    def compare(value: Measured, bound: object) -> bool:
        __tracebackhide__ = True
        number, measure = float(value), value._measure
        limit = measure.finite(f"the bound of {value._name}", bound)
        holds, margin = decide(number, limit)
        measure.record(Comparison(value._name, number, value._unit, operator, limit, margin, holds))
        return True

    return compare


class Measured(float):
    """A measured value. Comparing it records the truth and returns True, so that the body runs to its end."""

    __slots__ = ("_measure", "_name", "_unit")

    def __new__(cls, value: float, **_: Any) -> Measured:
        return super().__new__(cls, value)

    def __init__(self, _: float, *, name: str, unit: str, measure: Measure) -> None:
        self._name, self._unit, self._measure = name, unit, measure

    __lt__ = _comparing("<", lambda value, limit: (value < limit, limit - value))
    __le__ = _comparing("<=", lambda value, limit: (value <= limit, limit - value))
    __gt__ = _comparing(">", lambda value, limit: (value > limit, value - limit))
    __ge__ = _comparing(">=", lambda value, limit: (value >= limit, value - limit))
    __eq__ = _comparing("==", lambda value, limit: (value == limit, -abs(value - limit)))

    def __ne__(self, bound: object) -> bool:
        __tracebackhide__ = True
        self._measure.reject(
            f"{self._name!r} is compared with !=, which almost any value passes; compare it with a bound"
        )

    def __bool__(self) -> NoReturn:  # noqa: PLE0304 - never returns
        __tracebackhide__ = True
        self._measure.reject(f"{self._name!r} is used without a bound; compare it with one")

    __hash__ = None  # type: ignore[assignment]
