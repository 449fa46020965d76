"""A verdict as plain values: these cross from xdist's workers to the process that writes them, and go into the JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from nopos.claims.claim import Claim
from nopos.claims.control import Control, Subject
from nopos.claims.outcome import Controls, Outcome
from nopos.claims.verdict import Verdict

Record = dict[str, Any]
DESCRIBING = ("description", "sha256", "config", "recipe", "seed")
"""What a subject's `record()` may say of it; what it does not say is None."""


def records(verdict: Verdict, subject: Subject, controls: Controls) -> list[Record]:
    """All that a verdict says: an entry `{"subject": ..., "claim": ...}` for the subject and for each built control.

    Args:
        verdict: of a claim on the subject.
        subject: the model under test.
        controls: those that the verdict was made with.
    """
    entries = [{"subject": subject_record(subject), "claim": _on_subject(verdict)}]
    of_controls = (control_entry(verdict.claim, *found, subject, controls) for found in verdict.controls)
    return entries + [entry for entry in of_controls if entry is not None]


def control_entry(
    claim: Claim, control: Control, outcome: Outcome, subject: Subject, controls: Controls
) -> Record | None:
    """An entry of `records` of a claim on one control; None of one that was not built."""
    model = controls.built(control, subject)
    if model is None:
        return None
    described = control_record(control, model, number=controls.number(control), beside=subject)
    return {"subject": described, "claim": _on_control(claim, outcome)}


def subject_record(subject: Subject) -> Record:
    """What identifies a subject under test."""
    return _under_test(subject.name) | _described(subject)


def control_record(control: Control, model: Subject, *, number: int, beside: Subject) -> Record:
    """What identifies a control's model.

    Args:
        control: whose phrase says what the model lacks.
        model: that was made for it.
        number: tells it from other controls of its name.
        beside: the subject under test; the record has what of it decided the model.
    """
    made_for = control.key(beside)
    named = {"name": control.name, "role": "control", "kind": control.kind, "number": number, "made_for": made_for}
    return named | _described(model) | {"description": control.lacks}


def unloaded_record(name: str) -> Record:
    """What is known of a subject that was never loaded."""
    nothing = dict.fromkeys(DESCRIBING) | {"description": "not loaded"}
    return _under_test(name) | nothing


def brief(entry: Record) -> str:
    """One entry of `records` as JSON for a test's properties, which JUnit's XML has: what was claimed and measured."""
    claim = entry["claim"]
    kept = {name: claim[name] for name in ("statement", "verdict", "measurements")}
    return json.dumps({"subject": entry["subject"]["name"], **kept})


def planned_record(claim: Claim) -> Record:
    """A claim that was to run; it stands as `not run` until a verdict takes its place."""
    return _claim_record(
        claim,
        verdict="not run",
        as_expected=False,
        reason=f"{claim.sentence}: was to run and did not ({claim.where})",
        seconds=0.0,
        measurements=[],
        controls=[],
    )


def failed_record(claim: Record, problem: str) -> Record:
    """The record of a claim made an error that no verdict tells of: its fixtures failed before it or after it."""
    reason = problem if claim["verdict"] in ("holds", "not run") else f"{claim['reason']}; {problem}"
    return claim | {"verdict": "error", "as_expected": False, "reason": reason}


def _under_test(name: str) -> Record:
    return {"name": name, "role": "subject", "kind": None, "number": None, "made_for": None}


def _described(subject: Subject) -> Record:
    recorded = subject.record()
    return {name: recorded.get(name) for name in DESCRIBING}


def _on_subject(verdict: Verdict) -> Record:
    return _claim_record(
        verdict.claim,
        verdict=verdict.verdict,
        as_expected=verdict.as_expected,
        reason=verdict.reason,
        seconds=verdict.seconds,
        measurements=[asdict(one.comparison) | _refuted_by(one.refuted_by) for one in verdict.comparisons],
        controls=[_named(control) | {"verdict": outcome.verdict} for control, outcome in verdict.controls],
    )


def _on_control(claim: Claim, outcome: Outcome) -> Record:
    """A control has no verdict of its own to expect: what it should show is judged with the subject's."""
    return _claim_record(
        claim,
        verdict=outcome.verdict,
        as_expected=None,
        reason=outcome.error,
        seconds=outcome.seconds,
        measurements=[asdict(comparison) | _refuted_by(()) for comparison in outcome.comparisons],
        controls=[],
    )


def _claim_record(claim: Claim, **found: Any) -> Record:
    """The record of a claim, in the order in which the JSON has it."""
    stated = {name: getattr(claim, name) for name in ("id", "statement", "evidence", "source", "refutes", "requested")}
    return stated | found | {"seconds": round(found["seconds"], 3)}


def _refuted_by(controls: Iterable[Control]) -> Record:
    return {"refuted_by": [_named(control) for control in controls]}


def _named(control: Control) -> Record:
    return {"name": control.name, "kind": control.kind}
