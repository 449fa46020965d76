"""A claim: a sentence that could be false, a measurement, a bound, and a model on which the sentence is false.

A claim is an ordinary test under `@claim`. Its body asserts comparisons of measured values. What can be seen of the
rules without running it is seen here, when the test is defined (`rules`); the rest is decided by `verdict.check`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from nopos.claims.control import Control
from nopos.claims.scope import Scope
from nopos.errors import ClaimError

Evidence = Literal["behavioural", "correlational", "causal", "constructive"]
EVIDENCE: tuple[Evidence, ...] = get_args(Evidence)
FIXTURE = "nopos_subject"
"""The fixture that pytest is asked for, so that a project can have a fixture called `subject`."""
_ATTRIBUTE = "__nopos_claim__"
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

Test = TypeVar("Test", bound=Callable[..., None])


@dataclass(frozen=True)
class Claim:
    """A test that `@claim` has marked."""

    id: str
    """`folder/file.py::name`, with the class and the parameters if there are any: unique in a run."""
    name: str
    """Of the function."""
    statement: str
    """The docstring's first paragraph."""
    evidence: Evidence
    """What the evidence can carry."""
    source: str
    """The notebook step or paper that the sentence comes from."""
    refutes: str
    """A believed sentence that is false if this one is true; empty if there is none."""
    requested: str
    """The finding that the user of the project asked for by name; empty if it is none of those."""
    refuted_by: tuple[Control, ...]
    """The controls: each comparison must come out false on at least one of them."""
    not_measurable_on: tuple[Control, ...]
    """Controls that lack what the claim is about, so that nothing can be measured on them."""
    scope: tuple[Scope, ...]
    """What a subject must have for the claim to be about it; empty if it is about every model."""
    body: Callable[..., None]
    """The test; called with `subject` and `measure`."""

    @property
    def function(self) -> Callable[..., None]:
        """The test as it was written, without what is bound to it: what two runs of one claim have in common."""
        body = inspect.unwrap(self.body)
        while isinstance(body, partial):
            body = body.func
        return inspect.unwrap(getattr(body, "__func__", body))

    @property
    def sentence(self) -> str:
        """The sentence that the name is."""
        return sentence(self.id)

    @property
    def where(self) -> str:
        """File and line of the test."""
        code = self.function.__code__
        path, here = Path(code.co_filename), Path.cwd()
        return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{code.co_firstlineno}"


def claim(
    *,
    evidence: Evidence,
    source: str,
    refuted_by: Sequence[Control] = (),
    not_measurable_on: Sequence[Control] = (),
    scope: Sequence[Scope] = (),
    refutes: str = "",
    requested: str = "",
) -> Callable[[Test], Test]:
    """Mark a test as a claim.

    Args:
        evidence: what the evidence can carry. Above `behavioural` the claim must tell the model from one that solves
            the task by another mechanism.
        source: notebook step or paper.
        refuted_by: controls; each comparison must come out false on at least one of them.
        not_measurable_on: controls that lack what the claim is about, such as a second layer: measuring must raise
            NotMeasurableError on each of them.
        scope: properties that a subject must have; without one of them the verdict is `out of scope`. Controls are
            measured whatever they have.
        refutes: a believed sentence that the claim's truth refutes; it is printed and kept.
        requested: the finding that the user of the project asked for by name; `pytest -m requested` runs these.

    Raises:
        ClaimError: the claim breaks a rule that can be seen without running it.
    """
    lists: dict[str, object] = {"refuted_by": refuted_by, "not_measurable_on": not_measurable_on, "scope": scope}

    def mark(test: Test) -> Test:
        __tracebackhide__ = True
        for option, given in lists.items():
            if not isinstance(given, Sequence) or isinstance(given, str):
                what = f"the control {given.name!r} itself" if isinstance(given, Control) else repr(given)
                right = "scopes, such as [TWO_LAYERS]" if option == "scope" else "controls, such as [UNTRAINED]"
                raise ClaimError(f"{test.__name__}: {option} is {what}; give a list of {right}")
        vars(test).pop("__signature__", None)  # of an earlier mark
        marked = Claim(
            id=_default_id(test),
            name=test.__name__,
            statement=inspect.cleandoc(test.__doc__ or "").split("\n\n")[0].replace("\n", " "),
            evidence=evidence,
            source=source,
            refutes=refutes,
            requested=requested,
            refuted_by=tuple(refuted_by),
            not_measurable_on=tuple(not_measurable_on),
            scope=tuple(scope),
            body=test,
        )
        from nopos.claims.rules import body_problems  # here: pytest loads this file where no claim is

        problems = _mark_problems(marked) or body_problems(test)
        if problems:
            raise ClaimError(f"{test.__name__}: {'; '.join(problems)}")
        setattr(test, _ATTRIBUTE, marked)
        test.__signature__ = _asking(test)  # type: ignore[attr-defined]
        return test

    return mark


def claim_of(test: object) -> Claim | None:
    """The claim that `@claim` made of a test, if it was marked."""
    found: Claim | None = getattr(test, _ATTRIBUTE, None)
    return found


def sentence(claim_id: str) -> str:
    """The sentence that a claim's name is, with its parameters. Names of weights (W_pos, b_U) keep their underscore."""
    name, bracket, parameters = claim_id.partition("::")[2].partition("[")
    name = (name or claim_id).rpartition("::")[2]
    words: list[str] = []
    for word in name.removeprefix("test_").split("_"):
        if words and words[-1] in ("W", "b"):
            words[-1] += f"_{word}"
        else:
            words.append(word)
    return " ".join(words) + (f" [{parameters}" if bracket else "")


def _asking(test: Callable[..., None]) -> inspect.Signature:
    """The signature as pytest shall read it: a subject is asked for under its fixture's name, `measure` not at all."""
    signature = inspect.signature(test)
    parameters = [
        one.replace(name=FIXTURE) if name == "subject" else one
        for name, one in signature.parameters.items()
        if name != "measure"
    ]
    return signature.replace(parameters=parameters)


def _default_id(test: Callable[..., Any]) -> str:
    path = test.__qualname__.rsplit("<locals>.", 1)[-1].replace(".", "::")
    return f"{Path(inspect.unwrap(test).__code__.co_filename).name}::{path}"


def _mark_problems(marked: Claim) -> list[str]:
    problems = []
    if not marked.statement:
        problems.append("has no docstring; it must say in plain English what the name claims")
    if not marked.source:
        problems.append("has no source; name the notebook step or the paper")
    if marked.evidence not in EVIDENCE:
        problems.append(f"evidence is {marked.evidence!r}; it must be one of {', '.join(EVIDENCE)}")
    if not marked.refuted_by:
        problems.append("needs refuted_by: name the controls on which the sentence is false")
    given: tuple[object, ...] = (*marked.refuted_by, *marked.not_measurable_on)
    names = [control.name for control in given if isinstance(control, Control)]
    if len(names) < len(given):
        stranger = next(one for one in given if not isinstance(one, Control))
        problems.append(f"names {stranger!r} as a control; give a Control, such as those of nopos.CONTROLS")
    elif len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        problems.append(f"names a control twice, or two controls of one name: {twice!r}; messages tell them by name")
    in_scope: tuple[object, ...] = marked.scope
    problems += [f"names {one!r} as its scope; give a Scope" for one in in_scope if not isinstance(one, Scope)]
    parameters = inspect.signature(marked.body).parameters.values()
    plain = {one.name for one in parameters if one.kind in _BY_NAME and one.default is one.empty}
    if not {"subject", "measure"} <= plain:
        problems.append("must take subject and measure, each by its name and without a default")
    return problems
