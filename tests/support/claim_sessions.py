"""Test-only: run claims that are written as text in a pytest session of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import nopos.subjects.controls  # noqa: F401 - here, because pytester forgets what its sessions import, and pyarrow cannot load twice

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

Run = Callable[..., tuple[pytest.RunResult, Any]]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Run claims on the reference model; gives pytester's result and the ledger, None where none was written."""

    def run_claims(body: str, *options: str) -> tuple[pytest.RunResult, Any]:
        pytester.makepyfile(PREAMBLE + body)
        ledger = pytester.path / "ledger.json"
        ledger.unlink(missing_ok=True)
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
