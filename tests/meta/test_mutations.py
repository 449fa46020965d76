"""The mutation score: damage planted in the reference model, and which claims notice it."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from fixtures.make_mutations import KEPT, NOTICED, kept, measured, rejected_share, table
from fixtures.outcomes import compared
from nopos.subjects.shipped import shipped_claims

AGAIN = "run python -m fixtures.make_mutations again"


def test_the_kept_table_is_printed_from_the_score():
    assert KEPT.with_suffix(".md").read_text() == table(kept()), AGAIN


def test_the_score_was_measured_with_these_claims_and_bounds(evaluated):
    assert compared(evaluated.outcomes) == kept().comparisons, AGAIN


def test_every_claim_rejects_some_mutant():
    """But one that refutes a believed sentence: what damage leaves does not make that sentence true."""
    refuting = {claim.name for claim in shipped_claims() if claim.refutes}
    never = {name for name, share in rejected_share(kept()).items() if share == 0}
    assert never <= refuting


@pytest.mark.slow
def test_damage_is_rejected_by_a_claim_about_the_mechanism(capsys):
    """A comparison that is false of any model with a higher loss does not count."""
    now, before = measured(every=3), kept()
    before = replace(before, mutants=before.mutants[::3])
    with capsys.disabled():
        sys.stdout.write("\n" + table(now))
    assert [score.errors for score in now.mutants if score.errors] == []
    assert [score for score in now.mutants if score.nats_added > NOTICED and not score.counted] == []
    assert [score.mutant for score in now.mutants] == [score.mutant for score in before.mutants]
    assert now.restate_a_low_loss == before.restate_a_low_loss, AGAIN
    shares, kept_shares = rejected_share(now), rejected_share(before)
    one = 1.5 / len(now.mutants)  # rounding differs between machines, and may move one verdict at a bound
    assert {name: share for name, share in shares.items() if abs(share - kept_shares[name]) > one} == {}, AGAIN
