"""A claim as a test of pytest's: its id, its body bound to its fixtures, what it prints, and how it fails."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from operator import methodcaller
from types import TracebackType
from typing import Any, NoReturn

import pytest

from nopos.claims.claim import FIXTURE, Claim, claim_of
from nopos.claims.control import Subject
from nopos.claims.measure import Measure
from nopos.claims.outcome import Controls
from nopos.claims.verdict import Verdict, check
from nopos.errors import ClaimError

HIDDEN = methodcaller("errisinstance", ClaimError)
"""As `__tracebackhide__`: pytest shows no frame of ours where the claim's own are shown."""


def claim_of_item(item: pytest.Item) -> Claim | None:
    """The claim that a test is, if it is one; a method of a unittest.TestCase, which has no parameters, is none."""
    return claim_of(item.function) if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None


def claims_among(items: Iterable[pytest.Item]) -> Iterator[tuple[pytest.Function, Claim]]:
    """Those of the tests that are claims."""
    for item in items:
        if isinstance(item, pytest.Function) and (claim := claim_of_item(item)) is not None:
            yield item, claim


def subject_name(item: pytest.Function) -> str:
    """The subject on which this test evaluates its claim."""
    return str(item.callspec.params[FIXTURE])


def claim_id(item: pytest.Function) -> str:
    """Pytest's id without the subject: path from pytest's root, class, function, and the ids of other parameters.

    The subject is the first parameter: `pytest_generate_tests` of the plugin comes before any other.
    """
    others = item.callspec._idlist[1:]
    return item.nodeid.removesuffix(f"[{item.callspec.id}]") + (f"[{'-'.join(others)}]" if others else "")


def checked(item: pytest.Function, claim: Claim, subject: Subject, controls: Controls) -> Verdict:
    """What `check` says of the claim, with its id from pytest and what it prints kept apart by model."""
    body = _bound(item)

    @functools.wraps(body)
    def printing_apart(*, subject: Subject, measure: Measure) -> None:
        try:
            body(subject=subject, measure=measure)
        finally:
            for stream, text in _printed(item).items():
                item.add_report_section("call", f"{stream} on {subject.name},", text)

    return check(replace(claim, id=claim_id(item), body=printing_apart), subject, controls)


def fail(item: pytest.Function, verdict: Verdict, subject: Subject) -> NoReturn:
    """Fail the test where it can be seen that the claim did not come out as it should.

    That is the line of what was raised on the subject or on a control, or of the comparison that is wrong: a second run
    of the body raises there, so that a traceback and a debugger have the claim's own variables.
    """
    __tracebackhide__ = HIDDEN
    message = "\n".join(reason.removeprefix("refuted: ") for reason in verdict.reasons)
    raised = verdict.exception
    if raised is not None and (not isinstance(raised, ClaimError) or _seen_in_body(verdict)):
        raise raised
    false = [judged.comparison for judged in verdict.comparisons if not judged.comparison.holds]
    trace = _of_a_control(verdict)
    if raised is None and not false and trace is not None:
        raise ClaimError(message).with_traceback(trace)
    if raised is None and (wrong := false[0] if false else verdict.unshown) is not None:
        _run_again(item, subject, Measure(fail_at=wrong.name, message=message))
    pytest.fail(f"{message} ({verdict.claim.where})", pytrace=False)


def _run_again(item: pytest.Function, subject: Subject, measure: Measure) -> None:
    __tracebackhide__ = True
    try:
        with subject.proven_unchanged():
            _bound(item)(subject=subject, measure=measure)
    finally:
        _printed(item)  # it has been kept in the first run


def _seen_in_body(verdict: Verdict) -> bool:
    """Whether what was raised on the subject was raised in the claim's own text, or in what it called."""
    assert verdict.exception is not None
    frames = traceback.walk_tb(verdict.exception.__traceback__)
    return any(frame.f_code is verdict.claim.function.__code__ for frame, _ in frames)


def _of_a_control(verdict: Verdict) -> TracebackType | None:
    """Where the first exception was raised that a control must not raise, if it was in a text that is not ours."""
    for control, outcome in verdict.controls:
        declared = control in verdict.claim.not_measurable_on and outcome.verdict == "not measurable"
        if outcome.exception is not None and not declared:
            return _after_the_machinery(outcome.exception.__traceback__)
    return None


def _after_the_machinery(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from where the claim's text, or a control's, begins."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(f"{__package__}."):
        trace = trace.tb_next
    return trace


def _bound(item: pytest.Function) -> Callable[..., None]:
    """The claim's body with the values of its other fixtures; they are the item's own."""
    others: dict[str, Any] = {name: item.funcargs[name] for name in item._fixtureinfo.argnames if name != FIXTURE}
    return partial(item.obj, **others) if others else item.obj


def _printed(item: pytest.Item) -> dict[str, str]:
    """What was printed since this was last asked, as far as pytest captures it."""
    capture = item.config.pluginmanager.getplugin("capturemanager")
    if capture is None or not capture.is_globally_capturing():
        return {}
    out, err = capture.read_global_capture()
    return {stream: text for stream, text in (("stdout", out), ("stderr", err)) if text}
