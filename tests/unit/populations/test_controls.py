from __future__ import annotations

from dataclasses import replace

import pytest

from nopos.claims.outcome import OnControls
from nopos.errors import TrainingError
from nopos.model.config import ModelConfig
from nopos.populations import work
from nopos.populations.controls import evaluated
from nopos.populations.work import ControlsShare
from nopos.subjects.sizes import in_words
from tests.support.engine import InProcess

SMALL, LARGE = replace(ModelConfig(), d_mlp=8), replace(ModelConfig(), d_mlp=16)


@pytest.fixture
def asked(monkeypatch):
    """What the workers are asked to evaluate; of the large size the second share cannot be."""
    asked = []

    def evaluate(size, share, shares):
        asked.append((size, share, shares))
        if (size, share) == (LARGE, 1):
            raise TrainingError("it diverged")
        return ControlsShare(known=OnControls({}, {(f"of {size.d_mlp}", share): True}), entries={})

    monkeypatch.setattr(work, "evaluate_controls", evaluate)
    return asked


def test_each_worker_has_a_share_of_each_size_and_what_came_out_is_joined(asked, one_claim):
    found = evaluated(InProcess(3), [SMALL])
    assert sorted(asked, key=lambda each: each[1]) == [(SMALL, share, 3) for share in range(3)]
    assert dict(found.known[SMALL].solves) == {("of 8", share): True for share in range(3)}
    assert list(found.ledgers) == [in_words(SMALL)]
    assert found.failures == {}


def test_a_size_whose_controls_cannot_be_evaluated_is_named_and_stops_no_other(asked, one_claim):
    found = evaluated(InProcess(2), [LARGE, SMALL])
    reason = f"the controls of {in_words(LARGE)} cannot be evaluated: TrainingError: it diverged"
    assert found.failures == {LARGE: reason}
    assert list(found.known) == [SMALL]
    assert list(found.ledgers) == [in_words(SMALL)]
