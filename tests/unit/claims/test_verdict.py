"""Every rule of `check`, on subjects that are plain objects."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nopos.claims.control import Control
from nopos.claims.outcome import Controls
from nopos.claims.verdict import check
from nopos.errors import NotMeasurableError
from tests.support.fake_subjects import Fake, claimed, control


def checked(claim, subject=None):
    return check(claim, subject or Fake(), Controls())


def test_a_claim_that_its_controls_refute_holds():
    verdict = checked(claimed(control()))
    assert (verdict.verdict, verdict.as_expected, verdict.reasons, verdict.reason) == ("holds", True, (), None)


def test_a_false_claim_names_claim_subject_measurement_got_expected_and_where_to_look():
    claim = claimed(control())
    verdict = checked(claim, Fake("mine", {"loss": 2.5, "share": 0.9}))
    assert (verdict.verdict, verdict.as_expected) == ("refuted", False)
    line = claim.function.__code__.co_firstlineno
    assert verdict.reason == (
        f"low, on mine: refuted: loss: got 2.5 nats, expected < 1.0 (tests/support/fake_subjects.py:{line})"
    )


def test_each_comparison_says_which_controls_refute_it_and_of_which_kind_they_are():
    first, second = control("first", "near miss", share=0.9), control("second", "broken")
    verdict = checked(claimed(first, second))
    named = {one.comparison.name: [(c.name, c.kind) for c in one.refuted_by] for one in verdict.comparisons}
    assert named == {
        "loss": [("first", "near miss"), ("second", "broken")],
        "share": [("second", "broken")],
    }


def test_a_comparison_that_no_control_refutes_is_an_error_that_names_them():
    verdict = checked(claimed(control("first", share=0.9), control("second", share=0.8)))
    assert verdict.verdict == "error"
    assert verdict.reasons == ("cannot tell good from first, second: 'share' is false on none of them",)


def test_a_claim_may_be_refuted_and_weak_at_once_and_says_both():
    verdict = checked(claimed(control(share=0.9)), Fake("mine", {"loss": 2.5, "share": 0.9}))
    assert verdict.verdict == "error"
    assert [reason.split(":")[0] for reason in verdict.reasons] == ["refuted", "cannot tell mine from bad"]


def raising(error):
    def raises(subject, measure):
        """It raises."""
        assert measure("loss", subject["loss"]) < 1.0
        if error is not None or subject["loss"] > 1:
            raise error or ValueError("bad model")

    return raises


def test_an_exception_on_a_control_is_an_error_and_never_a_refutation():
    verdict = checked(claimed(control(), body=raising(None)))
    assert verdict.verdict == "error"
    assert verdict.reasons == ("control bad: ValueError: bad model; an error is never a refutation",)
    assert verdict.comparisons[0].refuted_by == ()
    assert verdict.exception is None


def test_an_exception_on_the_subject_is_the_whole_verdict():
    """It comes again on every control, which says nothing of them."""
    error = ValueError("two\nlines")
    verdict = checked(claimed(control(), body=raising(error)))
    assert verdict.verdict == "error"
    assert verdict.reasons == ("ValueError: two\nlines",)
    assert verdict.exception is error
    assert "ValueError: two lines (" in verdict.reason


class Ending(BaseException):
    """Like what pytest's skip and xfail raise, which would end this test too if it came through."""


def test_a_claim_may_not_skip_or_xfail():
    verdict = checked(claimed(control(), body=raising(Ending("not today"))))
    assert verdict.verdict == "error"
    assert "a claim may not skip or xfail (not today); it holds or it is refuted" in verdict.reason


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_process_is_no_verdict(ending):
    with pytest.raises(ending):
        checked(claimed(control(), body=raising(ending())))


def test_a_control_that_cannot_be_built_is_an_error():
    broken = Control("broken", "everything", lambda: 1 / 0, "broken")
    verdict = checked(claimed(broken, control()))
    assert verdict.reasons == ("control broken: ZeroDivisionError: division by zero; an error is never a refutation",)


def test_a_control_whose_making_skips_is_an_error():
    def skips():
        raise Ending("no such file")

    verdict = checked(claimed(Control("absent", "everything", skips, "broken"), control()))
    assert verdict.verdict == "error"
    assert "control absent: ClaimError: a claim may not skip or xfail (no such file)" in verdict.reason


@pytest.mark.usefixtures("unchecked")
def test_a_control_that_makes_no_subject_is_an_error():
    verdict = checked(claimed(Control("empty", "everything", lambda: None, "broken"), control()))
    assert (
        "control empty: ClaimError: control empty builds None; it must build a subject, as ModelSubject is"
        in verdict.reason
    )


def test_a_control_whose_making_changes_the_subject_is_named_and_the_next_claim_finds_it_as_it_was():
    def spoiling(subject):
        subject.numbers["loss"] = 5.0
        return Fake("bad", {"loss": 9.0, "share": 0.1})

    subject = Fake()
    verdict = check(claimed(Control("spoiling", "all", spoiling, "broken")), subject, Controls())
    assert verdict.verdict == "error"
    assert "control spoiling: ClaimError: good: a test changed its numbers" in verdict.reason


def test_a_subject_that_the_body_changes_is_an_error():
    def spoils(subject, measure):
        """It changes what it measures."""
        subject.numbers["loss"] = 0.5
        assert measure("loss", subject["loss"]) < 1.0

    assert checked(claimed(control(), body=spoils)).reasons == ("ClaimError: good: a test changed its numbers",)


def bound_of(subject):
    return min(subject["loss"], 1) + 1


def test_other_comparisons_on_a_control_than_on_the_subject_are_an_error():
    def more_on_the_bad(subject, measure):
        """It measures more on the bad one."""
        assert measure("loss", subject["loss"]) < 1.0
        if subject["loss"] > 1:
            assert measure("share", subject["share"]) > 0.5

    def another_bound_on_the_bad(subject, measure):
        """It has another bound on the bad one."""
        assert measure("loss", subject["loss"]) < bound_of(subject)

    def another_operator_on_the_bad(subject, measure):
        """It has another operator on the bad one."""
        loss = subject["loss"]
        if loss > 1:
            assert measure("loss", loss) > 10
        else:
            assert measure("loss", loss) < 10

    for body in (more_on_the_bad, another_bound_on_the_bad, another_operator_on_the_bad):
        verdict = checked(claimed(control(), body=body))
        assert verdict.reasons[0] == "compares other names or bounds on bad than on good; they must be the same"


ABOVE = ["correlational", "causal", "constructive"]
BLIND = "cannot tell the mechanism from being good at the task"


@pytest.mark.parametrize("evidence", ABOVE)
def test_above_behavioural_another_mechanism_that_solves_the_task_must_refute_the_claim(evidence):
    rival = control("rival", "other mechanism", solves=True)
    assert checked(claimed(control(), rival, evidence=evidence)).verdict == "holds"


@pytest.mark.parametrize("evidence", ABOVE)
@pytest.mark.parametrize(
    "rival",
    [
        control("rival", "other mechanism", solves=False),
        control("rival", "other mechanism", solves=True, loss=0.0, share=0.9),
        control("rival", "near miss", solves=True),
        control("rival", "other task", solves=True),
    ],
    ids=["fails at the task", "does not refute", "a near miss", "of another task"],
)
def test_no_other_control_stands_in_for_it(evidence, rival):
    verdict = checked(claimed(control(), rival, evidence=evidence))
    assert verdict.verdict == "error"
    (reason,) = verdict.reasons
    assert reason.startswith(f"{BLIND}: a {evidence} claim must come out refuted on a control that solves the task")
    fails = rival.kind == "other mechanism" and not rival.build().solves
    assert reason.endswith(", and rival does not solve it") == fails


def test_a_behavioural_claim_needs_no_other_mechanism():
    assert checked(claimed(control(), evidence="behavioural")).verdict == "holds"


def test_another_mechanism_must_refute_the_claim_as_a_whole_and_not_every_comparison():
    rival = control("rival", "other mechanism", solves=True, share=0.9)
    assert checked(claimed(control(), rival, evidence="causal")).verdict == "holds"


def test_an_error_in_saying_whether_a_control_solves_the_task_is_an_error():
    class Unsure(Fake):
        def solves_the_task(self):
            raise ValueError("cannot say")

    rival = Control("rival", "certainty", lambda: Unsure("rival", {"loss": 9.0, "share": 0.1}), "other mechanism")
    (reason,) = checked(claimed(rival, evidence="causal")).reasons
    assert reason == "control rival: whether it solves the task: ValueError: cannot say"


def test_two_controls_of_one_name_in_one_run_each_get_a_model_of_their_own():
    """One refutes the first claim; the other is as good as the subject, so the second claim must not pass."""
    bad, good = control("spoilt"), control("spoilt", loss=0.0, share=0.9)
    first, second, controls = claimed(bad), replace(claimed(good), id="second"), Controls()
    assert controls.subject(bad, Fake()) is not controls.subject(good, Fake())
    for order in ((first, second), (second, first)):
        verdicts = {claim.id: check(claim, Fake(), controls) for claim in order}
        assert verdicts[first.id].verdict == "holds"
        assert verdicts["second"].verdict == "error"
        assert "cannot tell good from spoilt" in verdicts["second"].reason


def about_layers(subject, measure):
    """It has two layers, and the second matters."""
    if "second" not in subject.numbers:
        raise NotMeasurableError("has one layer")
    assert measure("share of the second", subject["second"]) > 0.5


GOOD_LAYERS = Fake("good", {"second": 0.9})
IDLE, ONE_LAYER = control("idle", second=0.1), control("one layer")


def test_a_control_on_which_a_claim_cannot_be_measured_is_declared_and_refutes_no_comparison():
    claim = claimed(IDLE, not_measurable_on=[ONE_LAYER], body=about_layers)
    verdict = check(claim, GOOD_LAYERS, Controls())
    assert verdict.as_expected
    assert [outcome.verdict for _, outcome in verdict.controls] == ["refuted", "not measurable"]
    assert [one.name for one in verdict.comparisons[0].refuted_by] == ["idle"]


def test_it_is_no_refutation_by_accident():
    claim = claimed(IDLE, ONE_LAYER, body=about_layers)
    verdict = check(claim, GOOD_LAYERS, Controls())
    assert verdict.verdict == "error"
    assert "control one layer: NotMeasurableError: has one layer; a refutation is measured" in verdict.reason


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (IDLE, "control idle: not_measurable_on names it, and it is; name the control in refuted_by"),
        (
            Control("gone", "all", lambda: 1 / 0, "broken"),
            "control gone: not_measurable_on names it, and ZeroDivisionError: division by zero",
        ),
    ],
    ids=["measured", "another error"],
)
def test_what_is_declared_must_be_so(where, message):
    claim = claimed(control("lazy", second=0.2), not_measurable_on=[where], body=about_layers)
    verdict = check(claim, GOOD_LAYERS, Controls())
    assert verdict.verdict == "error"
    assert message in verdict.reason


def test_a_subject_on_which_nothing_can_be_measured_is_not_as_expected():
    claim = claimed(IDLE, not_measurable_on=[ONE_LAYER], body=about_layers)
    verdict = check(claim, Fake("flat", {}), Controls())
    assert (verdict.verdict, verdict.as_expected) == ("not measurable", False)
    assert "NotMeasurableError: has one layer" in verdict.reason
