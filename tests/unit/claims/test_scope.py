from __future__ import annotations

import pytest

from nopos.claims.outcome import Controls
from nopos.claims.records import records
from nopos.claims.scope import Scope, reasons_against
from nopos.claims.verdict import check
from nopos.errors import ClaimError
from tests.support.fake_subjects import Fake, claimed, control

LONG = Scope("ten positions", lambda subject: subject["positions"] >= 10)
WIDE = Scope("a wide model", lambda subject: subject["width"] > 3)


def sized(positions, width, **numbers):
    return Fake("mine", {"positions": positions, "width": width, "loss": 0.0, "share": 0.9} | numbers)


@pytest.mark.parametrize(
    ("positions", "width", "reasons"),
    [
        (10, 4, []),
        (9, 4, ["needs ten positions"]),
        (10, 3, ["needs a wide model"]),
        (9, 3, ["needs ten positions", "needs a wide model"]),
    ],
)
def test_what_a_subject_lacks_is_named(positions, width, reasons):
    assert reasons_against([LONG, WIDE], sized(positions, width)) == reasons


def test_a_claim_out_of_scope_is_neither_a_pass_nor_a_failure_and_measures_nothing():
    built = []

    def build():
        built.append(1)
        return Fake("bad", {"loss": 9.0, "share": 0.1})

    claim = claimed(control("bad"), scope=[LONG])
    within, outside = (check(claim, sized(positions, 4), Controls()) for positions in (10, 9))
    assert (within.verdict, within.as_expected) == ("holds", True)
    assert (outside.verdict, outside.as_expected, outside.reason) == ("out of scope", None, "needs ten positions")
    assert (outside.comparisons, outside.controls, built) == ((), (), [])
    (entry,) = records(outside, sized(9, 4), Controls())
    record = entry["claim"]
    assert (record["verdict"], record["as_expected"], record["reason"]) == ("out of scope", None, "needs ten positions")


def test_controls_are_measured_whatever_they_lack():
    """They have no positions at all: in scope or not, they refute."""
    verdict = check(claimed(control("bad"), scope=[LONG]), sized(10, 4), Controls())
    assert [outcome.verdict for _, outcome in verdict.controls] == ["refuted"]


@pytest.mark.parametrize(
    ("has", "problem"),
    [
        (lambda subject: subject["depth"], "its scope: KeyError: 'depth'"),
        (lambda subject: 1, "its scope: ClaimError: the scope 'this' gives a value of type int; give True or False"),
        (lambda subject: subject.numbers.clear() is None, "changed"),
    ],
    ids=["it raises", "no answer", "it changes the subject"],
)
def test_a_scope_that_cannot_be_asked_is_an_error(has, problem):
    verdict = check(claimed(control("bad"), scope=[Scope("this", has)]), sized(10, 4), Controls())
    assert (verdict.verdict, verdict.as_expected) == ("error", False)
    assert problem in verdict.reason


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("needs", "has", "problem"),
    [
        ("", lambda subject: True, "a scope needs ''; give a phrase that says what of a subject is needed"),
        (3, lambda subject: True, "a scope needs 3; give a phrase"),
        ("two layers", True, "the scope 'two layers': has is a value of type bool; give a function of a subject"),
    ],
)
def test_what_is_no_scope_is_refused(needs, has, problem):
    with pytest.raises(ClaimError) as raised:
        Scope(needs, has)
    assert problem in str(raised.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("scope", "problem"),
    [
        (LONG, "low: scope is Scope("),
        (["long"], "names 'long' as its scope; give a Scope"),
    ],
)
def test_a_claim_whose_scope_is_none_is_refused(scope, problem):
    with pytest.raises(ClaimError) as raised:
        claimed(control("bad"), scope=scope)
    assert problem in str(raised.value)
