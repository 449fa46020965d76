"""The mutation score: damage planted in the reference model, and which claims notice it."""

from __future__ import annotations

import sys

import pytest

from fixtures.make_mutations import KEPT, NOTICED, kept, rejected_share, scores, table
from fixtures.shipped_claims import shipped_claims


def test_the_kept_score_is_of_these_claims_and_its_table_is_printed_from_it():
    of_mutants = kept()
    assert {name for score in of_mutants for name in score.rejected_by} <= set(shipped_claims())
    assert KEPT.with_suffix(".md").read_text() == table(of_mutants), "run fixtures/make_mutations.py again"


def test_every_claim_rejects_some_mutant_of_the_kept_score():
    """A sentence that measurement refutes is told by the models on which it holds."""
    never = [
        name
        for name, share in rejected_share(kept()).items()
        if share == 0 and shipped_claims()[name].expect == "holds"
    ]
    assert never == []


@pytest.mark.slow
def test_damage_is_rejected_by_a_claim_about_the_mechanism(capsys):
    """Two and a half seconds a mutant. A claim that only restates a low loss is behavioural, and does not count."""
    measured = list(scores())
    with capsys.disabled():
        sys.stdout.write("\n" + table(measured))
    assert [score.errors for score in measured if score.errors] == []
    missed = [score for score in measured if score.nats_added > NOTICED and not score.mechanism_claims]
    assert missed == []
    assert [score.mutant for score in measured] == [score.mutant for score in kept()]
    now, before = rejected_share(measured), rejected_share(kept())
    moved = {name: (before[name], now[name]) for name in now if abs(now[name] - before[name]) > 1.5 / len(measured)}
    assert moved == {}, "more than one mutant's verdict moved; see which, then run fixtures/make_mutations.py"
