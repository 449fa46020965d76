"""The one place in which all rules live that a claim is judged by: `check(claim, subject, controls)`.

The pytest plugin, the command line and a notebook call it, and decide nothing. The scripts that measure bounds and
mutants have no use for controls: they call `outcome.evaluate`, which is one part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from nopos.claims.claim import Claim
from nopos.claims.control import Control, Subject
from nopos.claims.measure import Comparison
from nopos.claims.outcome import Controls, Outcome, evaluate, raised_by
from nopos.claims.scope import reasons_against


@dataclass(frozen=True)
class Judged:
    """A comparison on the subject, and the controls on which the same comparison came out false."""

    comparison: Comparison
    refuted_by: tuple[Control, ...]


@dataclass(frozen=True)
class Verdict:
    """What `check` found of a claim on a subject."""

    claim: Claim
    subject: str
    """The subject's name."""
    verdict: Literal["holds", "refuted", "not measurable", "error", "out of scope"]
    """`out of scope` if the claim is not about such a subject; `not measurable` if the subject lacks what the claim is
    about although its scope does not say so; `error` if the claim could not be evaluated for another reason, or if its
    controls do not show that it can fail."""
    reasons: tuple[str, ...]
    """Why the verdict is not `holds`: empty if it is."""
    comparisons: tuple[Judged, ...]
    controls: tuple[tuple[Control, Outcome], ...]
    """Each control with what came out of the claim on it."""
    seconds: float
    """That the subject took; the controls are evaluated once in a run."""
    exception: BaseException | None
    """What the claim's body raised on the subject, if it raised."""

    @property
    def as_expected(self) -> bool | None:
        """Whether the claim came out as it should; None if it is out of scope, which is neither."""
        return None if self.verdict == "out of scope" else self.verdict == "holds"

    @property
    def unshown(self) -> Comparison | None:
        """The first comparison that no control refutes; None if each is refuted by one."""
        return next((one.comparison for one in self.comparisons if not one.refuted_by), None)

    @property
    def reason(self) -> str | None:
        """In one line, what is wrong with which claim on which subject, and where to look; None if nothing is.

        Out of scope nothing is wrong: then it is what the subject lacks.
        """
        if not self.reasons:
            return None
        if self.verdict == "out of scope":
            return "; ".join(self.reasons)
        reasons = " ".join("; ".join(self.reasons).split())  # an exception's message may have several lines
        return f"{self.claim.sentence}, on {self.subject}: {reasons} ({self.claim.where})"


def check(claim: Claim, subject: Subject, controls: Controls) -> Verdict:
    """Evaluate a claim on a subject and on each of its controls, and judge what came out.

    The claim holds if every comparison is true of the subject, and if its controls show that it can fail: none ends
    in an error, all make the same comparisons as the subject, each comparison is false on at least one of them, and
    one that solves the task by another mechanism refutes a claim whose evidence is above `behavioural`. On a control
    that the claim names in `not_measurable_on` it must not be measurable, which makes no comparison false.

    A claim that is not about such a subject is not evaluated, nor are its controls.
    """
    lacking: list[str] = []

    def ask() -> None:
        with subject.proven_unchanged():
            lacking.extend(reasons_against(claim.scope, subject))

    problem = raised_by(ask) if claim.scope else None
    if problem is not None:
        return _unevaluated(claim, subject, "error", [f"its scope: {type(problem).__name__}: {problem}"], problem)
    if lacking:
        return _unevaluated(claim, subject, "out of scope", lacking)
    outcome = evaluate(claim, subject)
    named = (*claim.refuted_by, *claim.not_measurable_on)
    on_controls = tuple((control, controls.outcome(claim, control, subject)) for control in named)
    if outcome.error is not None:  # most errors come again on every control, and say nothing of them
        reasons, weaknesses = [outcome.error], []
    else:
        reasons = [f"refuted: {comparison.describe()}" for comparison in outcome.false.values()]
        weaknesses = _weaknesses(claim, outcome, subject, dict(on_controls), controls)
    return Verdict(
        claim=claim,
        subject=subject.name,
        verdict="error" if weaknesses else outcome.verdict,
        reasons=(*reasons, *weaknesses),
        comparisons=tuple(Judged(one, _refuting(one, on_controls)) for one in outcome.comparisons),
        controls=on_controls,
        seconds=outcome.seconds,
        exception=outcome.exception,
    )


def _unevaluated(
    claim: Claim,
    subject: Subject,
    verdict: Literal["error", "out of scope"],
    reasons: Sequence[str],
    exception: BaseException | None = None,
) -> Verdict:
    return Verdict(
        claim=claim,
        subject=subject.name,
        verdict=verdict,
        reasons=tuple(reasons),
        comparisons=(),
        controls=(),
        seconds=0.0,
        exception=exception,
    )


def _refuting(comparison: Comparison, on_controls: tuple[tuple[Control, Outcome], ...]) -> tuple[Control, ...]:
    return tuple(
        control for control, outcome in on_controls if outcome.verdict == "refuted" and comparison.name in outcome.false
    )


def _weaknesses(
    claim: Claim, on_subject: Outcome, subject: Subject, outcomes: dict[Control, Outcome], controls: Controls
) -> list[str]:
    """Why the controls do not show that this claim can fail; empty when they do."""
    on_controls = tuple((control, outcomes[control]) for control in claim.refuted_by)
    problems = [
        f"control {control.name}: {outcome.error}; {_rule_broken(outcome)}"
        for control, outcome in on_controls
        if outcome.error is not None
    ]
    problems += [
        f"control {control.name}: not_measurable_on names it, and "
        + (outcomes[control].error or "it is; name the control in refuted_by")
        for control in claim.not_measurable_on
        if outcomes[control].verdict != "not measurable"
    ]
    if problems:
        return problems
    problems += [
        f"compares other names or bounds on {control.name} than on {on_subject.subject}; they must be the same"
        for control, outcome in on_controls
        if outcome.compared != on_subject.compared
    ]
    names = ", ".join(control.name for control, _ in on_controls)
    problems += [
        f"cannot tell {on_subject.subject} from {names}: {comparison.name!r} is false on none of them"
        for comparison in on_subject.comparisons
        if not _refuting(comparison, on_controls)
    ]
    return problems + _blindness(claim, subject, on_controls, controls)


def _rule_broken(outcome: Outcome) -> str:
    if outcome.verdict == "not measurable":
        return "a refutation is measured; name the control in not_measurable_on"
    return "an error is never a refutation"


def _blindness(
    claim: Claim, subject: Subject, on_controls: tuple[tuple[Control, Outcome], ...], controls: Controls
) -> list[str]:
    """A claim about the mechanism must tell it from another that is as good at the task."""
    if claim.evidence == "behavioural":
        return []
    failing = []
    for control, outcome in on_controls:
        if control.kind == "other mechanism" and outcome.verdict == "refuted":
            error = raised_by(partial(controls.solves_the_task, control, subject))
            if error is not None:
                return [f"control {control.name}: whether it solves the task: {type(error).__name__}: {error}"]
            if controls.solves_the_task(control, subject):
                return []
            failing.append(control.name)
    return [
        f"cannot tell the mechanism from being good at the task: a {claim.evidence} claim must come out refuted on a "
        "control that solves the task by another mechanism"
        + (f", and {', '.join(failing)} does not solve it" if failing else "")
    ]
