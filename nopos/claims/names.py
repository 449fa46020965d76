"""What the names in a claim's text stand for, so that a number can be followed to where it was written.

The text is the claim's body, the values that its parameters have by default, and what these name in its file: constants
and functions. It is read as one: a name stands for all that any of this text makes of it.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType

from nopos.errors import ClaimError

WrittenFunction = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_GIVEN = {"subject", "measure"}
"""What a claim is given, whatever else its file calls so."""
_KNOWN = {"config", "task"}
"""What of a subject is known without measuring: its sizes, and what it was trained to do."""


class Names:
    """What a claim's text makes of each name."""

    def __init__(self, test: Callable[..., None]) -> None:
        """Read the text of a claim, and of what it names in its file.

        Raises:
            ClaimError: there is no text to read.
        """
        written = inspect.unwrap(test)
        try:
            file = ast.parse("".join(inspect.findsource(written)[0]))
            self.function = _function_at(file, written.__code__.co_firstlineno)
        except (OSError, StopIteration):
            place = "write it in a file or a notebook's cell"
            raise ClaimError(f"{test.__name__}: its text cannot be read; {place}") from None
        self._values = vars(builtins) | written.__globals__
        self._made = _grouped(_parameters_made(self.function))
        self._roots: list[ast.AST] = [self.function.args, *self.function.body]
        of_file = _grouped(pair for node in _outside_functions(file) for pair in _assigned(node))
        self._follow({name: values for name, values in of_file.items() if name not in _GIVEN})
        for call in [part for part in self.parts() if isinstance(part, ast.Call)]:
            for name, given in self._given(call):
                self._made.setdefault(name, []).append(given)

    def parts(self) -> Iterator[ast.AST]:
        """Every node of the text."""
        for root in self._roots:
            yield from ast.walk(root)

    def made(self, name: str) -> list[ast.AST]:
        """All that the text makes of a name; empty for what is built in or imported, and for the subject."""
        return self._made.get(name, []) if name != "subject" else []

    def functions(self, node: ast.AST) -> list[WrittenFunction]:
        """The functions of the text that a node stands for."""
        candidates = self.made(node.id) if isinstance(node, ast.Name) else [node]
        return [one for one in candidates if isinstance(one, WrittenFunction)]

    def value(self, node: ast.AST) -> object:
        """What an imported or built-in name, or an attribute of an imported module, stands for; else None."""
        if isinstance(node, ast.Attribute):
            module = self.value(node.value)
            return getattr(module, node.attr, None) if isinstance(module, ModuleType) else None
        return self._values.get(node.id) if isinstance(node, ast.Name) and not self.made(node.id) else None

    def is_subject(self, node: ast.AST, seen: frozenset[str] = frozenset()) -> bool:
        """Whether a node is the subject, or a name that stands for it. `seen` are names that are being followed."""
        if not isinstance(node, ast.Name) or node.id in seen:
            return False
        return node.id == "subject" or any(self.is_subject(one, seen | {node.id}) for one in self.made(node.id))

    def is_measured(self, node: ast.AST) -> bool:
        """Whether a value comes from the subject. Its sizes and its task are known before any measurement."""
        waiting, seen = [node], set[str]()
        while waiting:
            part = waiting.pop()
            if isinstance(part, ast.Name):
                if part.id == "subject":
                    return True
                if part.id not in seen:
                    seen.add(part.id)
                    waiting += self.made(part.id)
            elif isinstance(part, ast.Call) and self.functions(part.func):
                waiting.append(part.func)  # what it is given counts where its parameters are used
            elif not (isinstance(part, ast.Attribute) and part.attr in _KNOWN):
                waiting += ast.iter_child_nodes(part)
        return False

    def _follow(self, of_file: dict[str, list[ast.AST]]) -> None:
        """Take in what the text assigns, and those of the file's names that it uses."""
        for root in self._roots:  # which grows
            for part in ast.walk(root):
                defaults = _parameters_made(part) if isinstance(part, WrittenFunction) else ()
                for name, value in (*_assigned(part), *defaults):
                    self._made.setdefault(name, []).append(value)
                if isinstance(part, ast.Name) and part.id in of_file:
                    values = of_file.pop(part.id)
                    self._made.setdefault(part.id, []).extend(values)
                    self._roots += values

    def _given(self, call: ast.Call) -> Iterator[tuple[str, ast.AST]]:
        """What a call gives to the parameters of functions of the text: of the one called, and of those it is given.

        That one which is given, as an analysis is to `subject.run`, is called with the options by their names.
        """
        for function in self.functions(call.func):
            positional = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
            for number, given in enumerate(call.args):
                receiving = positional[number : number + 1] or _parameters(function)
                yield from ((name, given) for name in receiving)
        for function in (each for node in (call.func, *call.args) for each in self.functions(node)):
            for option in call.keywords:
                of_that_name = [name for name in _parameters(function) if name == option.arg]
                yield from ((name, option.value) for name in of_that_name or _parameters(function))


def _function_at(file: ast.Module, line: int) -> ast.FunctionDef:
    """The function whose text begins in a line, with its decorators."""
    functions = (node for node in ast.walk(file) if isinstance(node, ast.FunctionDef))
    return next(node for node in functions if line in (node.lineno, *(mark.lineno for mark in node.decorator_list)))


def _outside_functions(file: ast.Module) -> Iterator[ast.AST]:
    """The statements of a file that are run when it is imported."""
    waiting: list[ast.AST] = [file]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, WrittenFunction | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)


def _grouped(pairs: Iterable[tuple[str, ast.AST]]) -> dict[str, list[ast.AST]]:
    grouped: dict[str, list[ast.AST]] = {}
    for name, value in pairs:
        grouped.setdefault(name, []).append(value)
    return grouped


def _parameters(function: WrittenFunction) -> list[str]:
    given = function.args
    more = [each for each in (given.vararg, given.kwarg) if each is not None]
    return [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs, *more)]


def _parameters_made(function: WrittenFunction) -> Iterator[tuple[str, ast.AST]]:
    """The parameters with the values that they have by default."""
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    yield from zip(
        [each.arg for each in positional[len(positional) - len(given.defaults) :]], given.defaults, strict=True
    )
    yield from ((each.arg, value) for each, value in zip(given.kwonlyargs, given.kw_defaults, strict=True) if value)


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Each name to which a node gives a value, a function or something added in place, and what it gives."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name, node
    if isinstance(node, ast.Match):
        captures = (part for case in node.cases for part in ast.walk(case.pattern))
        yield from ((part.name, node.subject) for part in captures if isinstance(part, ast.MatchAs) and part.name)
    for target, value in _targets(node):
        yield from ((part.id, value) for part in ast.walk(target) if isinstance(part, ast.Name))


def _targets(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Target and value of each assignment that a node is, a loop's and a method's that is called for its effect too."""
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
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        yield node.value.func.value, node.value
