from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from nopos.claims.control import Control
from nopos.claims.measure import Comparison
from nopos.claims.outcome import Controls, Outcome, evaluate
from nopos.errors import NotMeasurableError
from tests.support.fake_subjects import Fake, claimed, control

SUBJECT = Fake()
TRUE, FALSE = Comparison("a", 1.0, "nats", "<", 2.0, 1.0, True), Comparison("b", 3.0, "", "<", 2.0, -1.0, False)


def test_the_verdict_is_made_from_the_whole_record():
    assert Outcome("m", (TRUE,), 0.0).verdict == "holds"
    assert Outcome("m", (TRUE, FALSE), 0.0).verdict == "refuted"
    assert Outcome("m", (TRUE, FALSE), 0.0, ValueError("x")).verdict == "error"
    assert Outcome("m", (TRUE, FALSE), 0.0, NotMeasurableError("has one layer")).verdict == "not measurable"


def test_an_early_false_comparison_lets_the_body_go_on():
    outcome = evaluate(claimed(control()), Fake("bad", {"loss": 9.0, "share": 0.9}))
    assert [comparison.holds for comparison in outcome.comparisons] == [False, True]
    assert outcome.compared == [("loss", "<", 1.0), ("share", ">", 0.5)]
    assert list(outcome.false) == ["loss"]


def test_keyword_arguments_with_defaults_keep_them():
    def at(subject, measure, offset=1):
        """It is measured at an offset."""
        assert measure("loss", subject["loss"] * offset) < 1

    assert evaluate(claimed(control(), body=at), Fake("bad", {"loss": 9.0})).comparisons[0].value == 9.0


@pytest.fixture
def counted():
    """A control that counts how often it is built, and a claim that counts on which subjects it is evaluated."""
    built, evaluated = [], []

    def build():
        built.append(1)
        return Fake("counted", {"loss": 9.0, "share": 0.1})

    def counts(subject, measure):
        """It counts."""
        evaluated.append(subject)
        assert measure("loss", subject["loss"]) < 1.0

    counting = Control("counted", "nothing", build, "broken")
    return claimed(counting, body=counts), counting, built, evaluated


def test_a_control_is_built_once_and_a_claim_evaluated_once_on_it(counted):
    claim, counting, built, evaluated = counted
    controls = Controls()
    bound = replace(claim, body=partial(claim.body))  # as the plugin binds it, anew for every subject
    outcomes = [controls.outcome(one, counting, SUBJECT) for one in (claim, claim, bound)]
    assert outcomes[0] is outcomes[1] is outcomes[2]
    assert (len(built), [subject.name for subject in evaluated]) == (1, ["counted"])


def test_a_claim_has_an_outcome_on_each_of_two_controls_of_one_name():
    bad, good = control("spoilt"), control("spoilt", loss=0.0, share=0.9)
    controls, claim = Controls(), claimed(bad)
    assert [controls.outcome(claim, one, SUBJECT).verdict for one in (bad, good)] == ["refuted", "holds"]


def test_controls_of_one_name_are_numbered_in_the_order_in_which_claims_name_them():
    first, other, second = control("spoilt"), control("other"), control("spoilt")
    controls = Controls()
    controls.plan(claimed(first, other))
    controls.plan(claimed(other, second))
    assert [controls.number(one) for one in (second, other, first, control("spoilt"))] == [2, 1, 1, 3]


def test_claims_of_other_parameters_are_evaluated_each(counted):
    claim, counting, built, evaluated = counted
    controls = Controls()
    for parameter in (1, 2):
        controls.outcome(replace(claim, id=f"{claim.id}[{parameter}]"), counting, SUBJECT)
    assert (len(built), [subject.name for subject in evaluated]) == (1, ["counted", "counted"])


def test_a_claim_that_is_defined_anew_is_evaluated_anew():
    """As in a notebook whose cell was edited and run again."""
    controls, bad = Controls(), control()

    def make(limit):
        def body(subject, measure):
            """It is low."""
            assert measure("loss", subject["loss"]) < limit

        return claimed(bad, body=body)

    assert make(1.0).id == make(10.0).id
    assert controls.outcome(make(1.0), bad, SUBJECT).verdict == "refuted"
    assert controls.outcome(make(10.0), bad, SUBJECT).verdict == "holds"


def test_subjects_of_which_what_decides_it_is_the_same_share_a_control():
    """Three subjects of two sizes: a model for each size, and the claim evaluated once on each."""
    built, evaluated = [], []

    def build(subject):
        built.append(subject.name)
        return Fake("sized", {"loss": 9.0, "share": 0.1})

    def counts(subject, measure):
        """It counts."""
        evaluated.append(subject)
        assert measure("loss", subject["loss"]) < 1.0

    sized = Control("sized", "nothing", build, "broken", made_for=lambda subject: f"size {subject['size']:g}")
    controls, claim = Controls(), claimed(sized, body=counts)
    subjects = [Fake(name, {"size": size}) for name, size in (("a", 1.0), ("b", 2.0), ("c", 1.0))]
    outcomes = [controls.outcome(claim, sized, subject) for subject in subjects]
    assert (built, [one.name for one in evaluated]) == (["a", "b"], ["sized", "sized"])
    assert outcomes[0] is outcomes[2] is not outcomes[1]
    assert [sized.key(subject) for subject in subjects] == ["size 1", "size 2", "size 1"]


@pytest.mark.parametrize("made_for", [lambda subject: 3, lambda subject: 1 / 0])
def test_a_control_that_cannot_say_what_it_is_made_for_is_an_error(made_for):
    odd = Control("odd", "nothing", lambda subject: Fake("odd"), "broken", made_for=made_for)
    controls = Controls()
    assert controls.outcome(claimed(odd), odd, SUBJECT).verdict == "error"
    assert controls.built(odd, SUBJECT) is None


def test_a_control_that_cannot_be_built_is_an_error_under_its_name():
    broken = Control("broken", "everything", lambda: 1 / 0, "broken")
    controls = Controls()
    outcome = controls.outcome(claimed(broken), broken, SUBJECT)
    assert (outcome.subject, outcome.verdict, outcome.error) == (
        "broken",
        "error",
        "ZeroDivisionError: division by zero",
    )
    assert controls.built(broken, SUBJECT) is None


def test_whether_a_control_solves_the_task_is_asked_once():
    asked = []

    class Asked(Fake):
        def solves_the_task(self):
            asked.append(1)
            return True

    rival = Control("rival", "nothing", lambda: Asked("rival"), "other mechanism")
    controls = Controls()
    assert [controls.solves_the_task(rival, SUBJECT) for _ in range(2)] == [True, True]
    assert len(asked) == 1


def test_a_control_for_each_subject_is_made_once_for_each_and_any_other_once_for_all():
    made = []

    def alike(subject):
        made.append(subject.name)
        return Fake("alike", {"loss": 2 * subject["loss"], "share": 0.1})

    def same():
        made.append("same")
        return Fake("same", {"loss": 9.0, "share": 0.1})

    each, all_ = Control("alike", "half of the loss", alike, "broken"), Control("same", "all", same, "broken")
    controls = Controls()
    small, large = Fake("small", {"loss": 1.0, "share": 0.9}), Fake("large", {"loss": 0.25, "share": 0.9})
    claim = claimed(each, all_)
    for _ in range(2):
        assert controls.outcome(claim, each, small).false.keys() == {"loss", "share"}
        assert controls.outcome(claim, each, large).false.keys() == {"share"}
        for subject in (small, large):
            assert controls.outcome(claim, all_, subject).verdict == "refuted"
    assert made == ["small", "large", "same"]
    assert controls.built(each, small) is not controls.built(each, large)
    assert controls.built(all_, small) is controls.built(all_, large)
