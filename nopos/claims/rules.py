"""The rules about a claim's body that can be seen in its text, without running it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import TypeGuard

_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Pow)
_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
_UNITS = (0, 1)
"""Numbers, and their negatives, that weigh nothing against anything: an arithmetic of them sets no bound."""


def body_problems(test: Callable[..., None]) -> list[str]:
    """In what a claim's body breaks a rule: empty when in nothing.

    Every assert is `assert measure(...) < bound`, `measure` stands nowhere else, and no free number but the bound takes
    part in what is measured.
    """
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(test))).body
    parts = list(ast.walk(function))
    asserts = [node for node in parts if isinstance(node, ast.Assert)]
    measurements = [call for node in asserts if (call := _measurement(node)) is not None]
    problems = [
        f"`assert {ast.unparse(node.test)}` is not of the form assert measure(...) < bound"
        for node in asserts
        if _measurement(node) is None
    ]
    allowed = {id(call.func) for call in measurements}
    problems += [
        f"line {name.lineno} uses measure outside an assert; only assert measure(...) < bound counts"
        for name in parts
        if isinstance(name, ast.Name) and name.id == "measure" and id(name) not in allowed
    ]
    if sum(isinstance(node, ast.arg) and node.arg == "measure" for node in parts) > 1:
        problems.append("has an inner function with a measure of its own; there is only one")
    if not asserts:
        problems.append("asserts nothing; a claim needs at least one measured comparison")
    return problems + _hidden_numbers(measurements, _made(function))


def _measurement(node: ast.Assert) -> ast.Call | None:
    """The call in `assert measure(...) < bound`; None for an assert of another form."""
    test = node.test
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], _COMPARISONS):
        return None
    call = test.left
    named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "measure"
    return call if named and isinstance(call, ast.Call) else None


def _hidden_numbers(measurements: list[ast.Call], made: dict[str, list[ast.AST]]) -> list[str]:
    """Each number that takes part in arithmetic on the way to a measured value, where a second bound could hide."""
    problems: dict[str, None] = {}
    for call in measurements:
        waiting: list[ast.AST] = [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "value")]
        seen = set[str]()
        while waiting:
            for part in _without_indices(waiting.pop()):
                if isinstance(part, ast.Name) and part.id not in seen:
                    seen.add(part.id)
                    waiting += made.get(part.id, [])
                for number in _free_operands(part, made):
                    problems[
                        f"{number} in `{ast.unparse(part)}` is a second free number that hides in a measurement; "
                        "measure the ratio, or both quantities"
                    ] = None
    return list(problems)


def _free_operands(part: ast.AST, made: dict[str, list[ast.AST]]) -> Iterator[str]:
    """The operands of a piece of arithmetic that are a free number, or a name that the body gives to one."""
    if isinstance(part, ast.BinOp) and isinstance(part.op, _ARITHMETIC):
        operands: list[ast.AST] = [part.left, part.right]
    elif isinstance(part, ast.AugAssign) and isinstance(part.op, _ARITHMETIC):
        operands = [part.value]
    else:
        return
    for operand in operands:
        named = made.get(operand.id, []) if isinstance(operand, ast.Name) else []
        if _is_free(operand) or any(map(_is_free, named)):
            yield ast.unparse(operand)


def _is_free(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp):
        return _is_free(node.operand)
    return isinstance(node, ast.Constant) and _is_number(node.value) and node.value not in _UNITS


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float | complex) and not isinstance(value, bool)


def _without_indices(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all within it but indices and ranges: a number there says which, not how much."""
    yield node
    if isinstance(node, ast.Subscript):
        yield from _without_indices(node.value)
    elif not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
        for child in ast.iter_child_nodes(node):
            yield from _without_indices(child)


def _made(function: ast.AST) -> dict[str, list[ast.AST]]:
    """What the body makes each name of: the values assigned to it, and the inner function that it is."""
    made: dict[str, list[ast.AST]] = {}
    for node in ast.walk(function):
        for target, value in _assigned(node):
            for name in ast.walk(target):
                if isinstance(name, ast.Name):
                    made.setdefault(name.id, []).append(value)
        if isinstance(node, ast.FunctionDef) and node is not function:
            made.setdefault(node.name, []).extend(node.body)
    return made


def _assigned(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Target and value of each assignment that a node is, a loop's included."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                yield from zip(target.elts, node.value.elts, strict=False)  # a starred target takes several
            else:
                yield target, node.value
    elif isinstance(node, ast.AugAssign):
        yield node.target, node
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
        yield node.target, node.value
    elif isinstance(node, ast.For | ast.comprehension):
        yield node.target, node.iter
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        yield node.optional_vars, node.context_expr
