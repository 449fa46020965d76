"""Test-only: run claims that are written as text in a pytest session of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from nopos.claims.control import Control, Subject
from nopos.claims.outcome import Controls
from nopos.subjects import controls  # here, because pytester forgets what its sessions import

PREAMBLE = """
import pytest
import torch
from nopos import claim
from nopos.subjects.controls import *

"""

GOOD = """
@claim(evidence="behavioural", source="here", refuted_by=[UNTRAINED])
def test_the_loss_is_low(subject, measure):
    '''The loss is low.'''
    assert measure("loss", subject.loss, "nats") < 0.1
"""


def measuring(value: str, *before: str) -> str:
    """GOOD with another value measured, and lines before the assert."""
    lines = "".join(f"{line}\n    " for line in before)
    return GOOD.replace("assert", f"{lines}assert").replace("subject.loss", value)


def and_then(*lines: str) -> str:
    """GOOD with lines after its own."""
    return GOOD + "".join(f"    {line}\n" for line in lines)


Run = Callable[..., tuple[pytest.RunResult, Any]]


@pytest.fixture(scope="session")
def built() -> dict[str, Subject]:
    """The reference model and two controls, each built and measured once for all sessions that are run within this."""
    reference = controls.reference()
    models: dict[str, Subject] = {one.name: one.model_for(reference) for one in (controls.UNTRAINED, controls.RELAY)}
    return {"reference": reference, **models}


@pytest.fixture
def run(pytester: pytest.Pytester, built: dict[str, Subject], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run claims on the reference model; gives pytester's result and the ledger, None where none was written."""
    build = Controls.subject

    def subject(of_session: Controls, control: Control, beside: Subject) -> Subject:
        if control in (controls.UNTRAINED, controls.RELAY):
            of_session._subjects[control, control.key(beside)] = built[control.name]
        return build(of_session, control, beside)

    monkeypatch.setattr(Controls, "subject", subject)
    monkeypatch.setattr(controls, "reference", lambda: built["reference"])

    def run_claims(body: str, *options: str) -> tuple[pytest.RunResult, Any]:
        pytester.makepyfile(PREAMBLE + body)
        ledger = pytester.path / "ledger.json"
        ledger.unlink(missing_ok=True)
        with ExitStack() as unchanged:
            for one in built.values():
                unchanged.enter_context(one.proven_unchanged())
            result = pytester.runpytest_inprocess(
                "-pnopos.subjects.plugin", "-pno:cacheprovider", "--nopos-json=ledger.json", *options
            )
        return result, json.loads(ledger.read_text()) if ledger.exists() else None

    return run_claims


def check_rejected(run: Run, body: str, message: str, *options: str) -> None:
    """The claim fails or cannot be collected, and the run says why in these words."""
    result, _ = run(body, *options)
    assert result.ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
    text = " ".join(result.stdout.str().split())
    assert message in text, text[-2000:]
