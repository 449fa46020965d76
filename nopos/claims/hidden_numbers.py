"""The rule that no second free number hides inside a measurement: `a - 0.7 * b < 0` is two quantities and two bounds.

A number other than 0, 1 and -1 that leads to a measured value is refused, wherever in the claim's file it stands,
unless it says *which* rather than *how much*. These say which: an index, a slice, and what `range`, `arange` and `topk`
are given, as long as these are not measured; a `dim`, `axis`, `k` or `offset`; an option of a method of the subject, or
of an imported function that is not general arithmetic as Python's and torch's are. A bound is a number, or what is
known without measuring.

What cannot be seen is a number in another file's functions, in an attribute of a class or an object, in a fixture or
a parameter of pytest's, in a condition within an analysis, in a function around the claim, or one that is made of
others, as `1 + 1` and `float("0.7")` are.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from typing import TypeGuard

from nopos.claims.names import Names, WrittenFunction

_UNITS = (-1, 0, 1)
"""Numbers that weigh nothing against anything: an arithmetic of them sets no bound."""
_RANGES = ("range", "arange", "topk")
_POSITIONS = ("dim", "axis", "k", "offset")
_ARITHMETIC = sys.stdlib_module_names | {"torch", "numpy", "scipy", "None"}
"""Packages whose functions do arithmetic with the numbers that they are given; builtins are among them."""


def hidden_numbers(value: ast.expr, bound: ast.expr, names: Names) -> list[str]:
    """What is wrong with the numbers of one measurement.

    Args:
        value: what is measured.
        bound: what it is compared with.
        names: of the claim that it stands in.
    """
    problems = [
        f"{number} is a second free number that hides in a measurement; measure the ratio, or both quantities"
        for number in free_numbers(value, names)
    ]
    if names.is_measured(bound):
        problems += [
            f"{number} is a free number in a bound that is measured; measure the ratio, and compare it with the number"
            for number in free_numbers(bound, names)
        ]
    return problems


def hidden_conditions(names: Names) -> list[str]:
    """What is wrong with the statements that run if something measured compares with a number."""
    return [
        f"{number} is a second free number that hides in a condition; measure what it is compared with"
        for test in map(_condition, names.parts())
        if test is not None and names.is_measured(test)
        for number in free_numbers(test, names)
    ]


def _condition(node: ast.AST) -> ast.expr | None:
    """On what it depends which statements run; an expression that stands alone, such as `a or b()`, is one of them."""
    if isinstance(node, ast.If | ast.While):
        return node.test
    if isinstance(node, ast.Match):
        return node.subject
    if isinstance(node, ast.match_case):
        return node.guard
    return node.value if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call) else None


def free_numbers(node: ast.AST, names: Names) -> Iterator[str]:
    """Each free number with which a value is made, and the piece of text in which it stands: "0.7 in `0.7 * b`"."""
    waiting, seen = [(node, node)], set[ast.AST]()
    while waiting:
        part, within = waiting.pop()
        if part in seen:
            continue
        seen.add(part)
        if _is_free(part, names):
            yield f"{ast.unparse(part)} in `{ast.unparse(within)}`"
        elif isinstance(part, ast.Name):
            values = names.made(part.id)
            waiting += ((value, within if isinstance(value, ast.Name) else value) for value in values)
        else:
            waiting += ((each, part) for each in _leading_to(part, names))


def _is_free(node: ast.AST, names: Names) -> bool:
    if isinstance(node, ast.UnaryOp):
        return _is_free(node.operand, names)
    if isinstance(node, ast.Name) and names.made(node.id):
        return any(_is_free(value, names) for value in names.made(node.id) if not isinstance(value, ast.Name))
    value = node.value if isinstance(node, ast.Constant) else names.value(node)
    return _is_number(value) and value not in _UNITS


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float | complex) and not isinstance(value, bool)


def _leading_to(node: ast.AST, names: Names) -> list[ast.AST]:
    """The parts of a node by which its value becomes what it is, without those that say which."""
    if isinstance(node, ast.Subscript):
        indices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return [node.value, *(index for index in indices if names.is_measured(index))]
    if isinstance(node, ast.Call):
        return _leading_to_call(node, names)
    if isinstance(node, ast.Lambda):
        return [node.body]
    if isinstance(node, WrittenFunction):
        ends = (part for part in ast.walk(node) if isinstance(part, ast.Return | ast.Yield | ast.YieldFrom))
        return [part.value for part in ends if part.value is not None]
    if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
        made = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        return [*made, *(test for each in node.generators for test in each.ifs)]
    return list(ast.iter_child_nodes(node))


def _leading_to_call(call: ast.Call, names: Names) -> list[ast.AST]:
    called = call.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    if name in _RANGES:
        return [each for each in call.args if names.is_measured(each)]
    if names.functions(called):
        return [called]  # what it is given is what its parameters stand for
    given = [*call.args, *(option.value for option in call.keywords if option.arg not in _POSITIONS)]
    if _takes_options(called, names):
        given = [each for each in given if names.is_measured(each) or names.functions(each)]
    return [called, *given]


def _takes_options(called: ast.AST, names: Names) -> bool:
    """Whether what is called is a method of the subject, or an imported function that is no general arithmetic."""
    if isinstance(called, ast.Attribute) and names.is_subject(called.value):
        return True
    function = names.value(called)
    return callable(function) and str(getattr(function, "__module__", None)).split(".")[0] not in _ARITHMETIC
