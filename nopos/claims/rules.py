"""The rules about a claim's body that can be seen in its text, without running it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter, methodcaller
from types import ModuleType

from nopos.claims.hidden_numbers import hidden_conditions, hidden_numbers
from nopos.claims.names import Names

_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
_IDENTIFYING = {"name", "record", "sha256", "recipe", "seed", "train", "losses", "made_with", "path", "describe"}
"""What of a subject, or of its checkpoint, tells which model it is and not what it does."""
_BY_TEXT = (getattr, vars, eval, exec, attrgetter, methodcaller)
"""What reads an attribute without naming it."""


def body_problems(test: Callable[..., None]) -> list[str]:
    """In what a claim's body breaks a rule: empty when in nothing.

    Every assert is `assert measure(name, value, unit) < bound`, `measure` stands nowhere else, what is measured comes
    from the subject, no free number but the bound takes part in it, and nothing tells which model the subject is.
    """
    names = Names(test)
    asserted = [node.test for node in ast.walk(names.function) if isinstance(node, ast.Assert)]
    measurements = [found for each in asserted if (found := _measurement(each)) is not None]
    problems = [
        f"`assert {ast.unparse(each)}` is not of the form assert measure(name, value, unit) < bound"
        for each in asserted
        if _measurement(each) is None
    ]
    problems += [
        f"`{ast.unparse(one.bound)}` is a bound that is measured; compare the ratio of both with a number"
        for one in measurements
        if _uses_measure(one.bound)
    ]
    problems += _other_measures(names.function, asserted)
    if not asserted:
        problems.append("asserts nothing; a claim needs at least one measured comparison")
    for one in measurements:
        if not names.is_measured(one.value):
            where = "does not come from the subject; its config and task may be read, not measured"
            problems.append(f"`{ast.unparse(one.value)}` is measured and {where}")
        problems += hidden_numbers(one.value, one.bound, names)
    problems += _imports(names)
    return list(dict.fromkeys([*problems, *hidden_conditions(names), *_identifications(names)]))


@dataclass(frozen=True)
class _Measurement:
    """`measure(name, value, unit) < bound`."""

    measure: ast.expr
    value: ast.expr
    bound: ast.expr


def _measurement(test: ast.AST) -> _Measurement | None:
    """The parts of `measure(name, value, unit) < bound`; None for an expression of another form."""
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], _COMPARISONS):
        return None
    call = test.left
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "measure":
        return None
    options = {option.arg: option.value for option in call.keywords}
    if None in options or any(isinstance(each, ast.Starred) for each in call.args):
        return None  # what `*` and `**` give is not seen
    value = call.args[1] if len(call.args) > 1 else options.get("value")
    return None if value is None else _Measurement(call.func, value, test.comparators[0])


def _uses_measure(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Name) and part.id == "measure" for part in ast.walk(node))


def _other_measures(function: ast.FunctionDef, asserted: list[ast.expr]) -> Iterator[str]:
    """Where `measure` is used, or made, outside the asserts, or within what an assert's measure is given."""
    in_asserts = {part for each in asserted for part in ast.walk(each)}
    measurements = [found for each in asserted if (found := _measurement(each)) is not None]
    for one in measurements:
        if _uses_measure(one.value):
            yield f"`{ast.unparse(one.value)}` is measured twice over; measure it once"
    for part in ast.walk(function):
        if isinstance(part, ast.Name) and part.id == "measure" and part not in in_asserts:
            yield f"line {part.lineno} uses measure outside an assert; only assert measure(...) < bound counts"
    if sum(isinstance(part, ast.arg) and part.arg == "measure" for part in ast.walk(function)) > 1:
        yield "has an inner function with a measure of its own; there is only one"


def _imports(names: Names) -> Iterator[str]:
    """What is imported where it cannot be seen what its names stand for."""
    for part in names.parts():
        if isinstance(part, ast.Import | ast.ImportFrom):
            seen = "import at the head of the file, where it can be seen"
            yield f"imports within its text: `{ast.unparse(part)}`; {seen}"


def _identifications(names: Names) -> Iterator[str]:
    """Where the text asks which model the subject is: a verdict must come of what the model does."""
    for part in names.parts():
        if _can_identify(part, names):
            yield f"`{ast.unparse(part)}` can tell which model it is; a claim is decided by what is measured alone"


def _can_identify(part: ast.AST, names: Names) -> bool:
    """Whether a part of the text could read what tells which model it is, of whatever: the subject has many names."""
    if isinstance(part, ast.Attribute) and (part.attr in _IDENTIFYING or part.attr.startswith("_")):
        return not isinstance(names.value(part.value), ModuleType)
    if isinstance(part, ast.MatchClass):
        return True
    if isinstance(part, ast.arg):
        return part.arg == "request" and part in ast.walk(names.function.args)
    return any(names.value(part) is reader for reader in _BY_TEXT)
