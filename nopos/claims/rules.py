"""The rules about a claim's body that can be seen in its text, without running it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from operator import attrgetter, methodcaller
from types import ModuleType

from nopos.claims.hidden_numbers import hidden_conditions, hidden_numbers, measured_values
from nopos.claims.names import Names

_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
_IDENTIFYING = {"name", "record", "sha256", "recipe", "seed", "train", "losses", "made_with", "path", "describe"}
"""What of a subject, or of its checkpoint, tells which model it is and not what it does."""
_BY_TEXT = (getattr, vars, eval, exec, attrgetter, methodcaller)
"""What reads an attribute without naming it."""


def body_problems(test: Callable[..., None]) -> list[str]:
    """In what a claim's body breaks a rule: empty when in nothing.

    Every assert is `assert measure(...) < bound`, `measure` stands nowhere else, what is measured comes from the
    subject, no free number but the bound takes part in it, and nothing tells which model the subject is.
    """
    names = Names(test)
    asserted = [node.test for node in ast.walk(names.function) if isinstance(node, ast.Assert)]
    measurements = [found for each in asserted if (found := _measurement(each)) is not None]
    problems = [
        f"`assert {ast.unparse(each)}` is not of the form assert measure(...) < bound"
        for each in asserted
        if _measurement(each) is None
    ]
    problems += _other_measures(names.function, [call.func for call, _ in measurements])
    if not asserted:
        problems.append("asserts nothing; a claim needs at least one measured comparison")
    for call, bound in measurements:
        problems += _not_measured(call, names)
        problems += hidden_numbers(call, bound, names)
    return list(dict.fromkeys([*problems, *hidden_conditions(names), *_identifications(names)]))


def _measurement(test: ast.AST) -> tuple[ast.Call, ast.expr] | None:
    """The call and the bound in `measure(...) < bound`; None for an expression of another form."""
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], _COMPARISONS):
        return None
    call = test.left
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "measure":
        return call, test.comparators[0]
    return None


def _other_measures(function: ast.FunctionDef, allowed: list[ast.expr]) -> Iterator[str]:
    """Where `measure` is used, or made, other than to be compared in an assert."""
    for part in ast.walk(function):
        if isinstance(part, ast.Name) and part.id == "measure" and part not in allowed:
            yield f"line {part.lineno} uses measure outside an assert; only assert measure(...) < bound counts"
    if sum(isinstance(part, ast.arg) and part.arg == "measure" for part in ast.walk(function)) > 1:
        yield "has an inner function with a measure of its own; there is only one"


def _not_measured(call: ast.Call, names: Names) -> Iterator[str]:
    """What is wrong with where the value of `measure(name, value, unit)` comes from."""
    for value in measured_values(call):
        if not names.is_measured(value):
            where = "does not come from the subject; its config and task may be read, not measured"
            yield f"`{ast.unparse(value)}` is measured and {where}"


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
        return part.arg == "request"
    return any(names.value(part) is reader for reader in _BY_TEXT)
