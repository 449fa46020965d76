"""Test-only: what comes out of all shipped claims on the reference model, and what they edit on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from fixtures.outcomes import outcomes
from nopos.claims.outcome import Outcome
from nopos.methods import interventions
from nopos.methods.activations import Tokens
from nopos.methods.interventions import Edit
from nopos.model.transformer import NoPosTransformer
from nopos.subjects.controls import reference
from nopos.subjects.subject import Subject

FEW = 8


@dataclass(frozen=True)
class Evaluated:
    """What came of all shipped claims on the reference model, and what they did to it."""

    subject: Subject
    outcomes: dict[str, Outcome]
    edited: frozenset[str]
    """Every hook point that was edited on the way."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have one of several processes run all tests that need this, so that it is made once."""
    for item in items:
        if isinstance(item, pytest.Function) and "evaluated" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("evaluated"))


@pytest.fixture(scope="session")
def evaluated() -> Evaluated:
    """All shipped claims evaluated on the reference model, once, on few sequences.

    What they compare with which bounds, and what they edit on the way, does not depend on how many there are; the
    verdicts are those of the claims' own run.
    """
    edited, subject = set[str](), Subject("reference", reference().checkpoint, sequences=FEW)
    real = interventions._run

    def recording(model: NoPosTransformer, tokens: Tokens, edits: Mapping[str, Edit], **options: Any) -> Tensor:
        edited.update(edits)
        return real(model, tokens, edits, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interventions, "_run", recording)
        of_claims = outcomes(subject)
    return Evaluated(subject, of_claims, frozenset(edited))
