from __future__ import annotations

from functools import partial

import pytest

from nopos.claims.control import KINDS, Control
from nopos.errors import ClaimError
from tests.support.fake_subjects import Fake


def test_a_control_is_identified_by_itself_and_not_by_its_name():
    first, second = (Control("same", "the same", Fake, "broken") for _ in range(2))
    assert first != second
    assert first == first
    assert len({first, second, first}) == 2


@pytest.mark.usefixtures("unchecked")
def test_a_kind_that_there_is_not_is_refused_in_one_line():
    with pytest.raises(ClaimError, match=r"the kind of control odd is 'odd'; it must be one of broken, other task"):
        Control("odd", "nothing", Fake, "odd")


def test_the_kinds_are_those_that_the_ledger_may_hold():
    assert KINDS == ("broken", "other task", "other mechanism", "near miss", "damaged artefact")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (Fake(), "build is a value of type Fake; give the function that makes it"),
        (None, "build is a value of type NoneType; give the function that makes it"),
        (lambda model: Fake(), "build asks for model; it may ask for subject alone"),
        (lambda subject, seed: Fake(), "build asks for subject, seed; it may ask for subject alone"),
    ],
    ids=["a subject", "none", "another name", "more than the subject"],
)
def test_what_cannot_make_a_model_is_refused_when_the_control_is_made(build, problem):
    with pytest.raises(ClaimError, match=f"^control odd: {problem}$"):
        Control("odd", "nothing", build, "broken")


@pytest.mark.parametrize("build", [Fake, lambda subject: Fake(), lambda **_: Fake()])
def test_what_needs_nothing_or_the_subject_can(build):
    assert isinstance(Control("good", "nothing", build, "broken").model_for(Fake()), Fake)


def test_a_subject_that_is_bound_already_is_left_as_it_is():
    mine = Fake("mine")
    bound = Control("good", "nothing", partial(lambda subject: Fake(subject.name), subject=mine), "broken")
    assert not bound.is_for_a_subject
    assert bound.model_for(Fake("another")).name == "mine"
