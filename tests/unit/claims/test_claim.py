from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from nopos.claims.claim import claim, claim_of, sentence
from nopos.errors import ClaimError
from tests.support.fake_subjects import claimed, control, low


def test_a_claim_says_what_its_test_and_its_mark_say():
    bad = control()
    marked = claimed(bad, evidence="causal", source="notebook", refutes="the loss is high", requested="a low loss")
    assert (marked.id, marked.name, marked.statement) == ("fake_subjects.py::low", "low", "The loss is low.")
    assert (marked.evidence, marked.source) == ("causal", "notebook")
    assert (marked.refutes, marked.requested) == ("the loss is high", "a low loss")
    assert marked.refuted_by == (bad,)
    assert marked.body is low
    assert claim_of(low) is marked


class TestInAClass:
    @claim(evidence="behavioural", source="here", refuted_by=[control()])
    def check_it_is_low(self, subject, measure):
        """It is low,
        over two lines.

        And a second paragraph.
        """
        assert measure("loss", subject["loss"]) < 1.0

    def test_the_id_has_the_class_and_the_statement_is_the_first_paragraph(self):
        marked = claim_of(TestInAClass.check_it_is_low)
        assert marked.id == "test_claim.py::TestInAClass::check_it_is_low"
        assert marked.statement == "It is low, over two lines."

    def test_the_function_is_what_was_written_whatever_is_bound_to_it(self):
        marked = claim_of(TestInAClass.check_it_is_low)
        bound = replace(marked, body=partial(partial(self.check_it_is_low), measure=None))
        assert bound.function is marked.function is TestInAClass.check_it_is_low
        assert bound.where == marked.where
        assert marked.where.startswith("tests/unit/claims/test_claim.py:")


def test_the_name_of_a_claim_is_its_sentence_and_weights_keep_their_names():
    assert sentence("test_a.py::test_W_pos_is_zero") == "W_pos is zero"
    assert sentence("test_a.py::test_how_b_U_and_a_W_E_differ_from_WB_x") == "how b_U and a W_E differ from WB x"
    assert sentence("3_ablation") == "3 ablation"
    assert sentence("a/test_a.py::TestIt::test_it_is[n=2, my_name='a_b']") == "it is [n=2, my_name='a_b']"


def test_an_unmarked_test_has_no_claim():
    assert claim_of(test_an_unmarked_test_has_no_claim) is None


def silent(subject, measure):
    assert measure("loss", subject["loss"]) < 1.0


def unmeasured(subject):
    """It takes no measure."""
    assert subject


def by_default(subject=None, *, measure):
    """Its subject can be left out."""
    assert measure("loss", subject["loss"]) < 1.0


def by_position(subject, measure, /):
    """Its parameters have no names."""
    assert measure("loss", subject["loss"]) < 1.0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("body", "changes", "problem"),
    [
        (silent, {}, "silent: has no docstring"),
        (low, {"source": ""}, "low: has no source; name the notebook step or the paper"),
        (low, {"evidence": "certain"}, "evidence is 'certain'; it must be one of behavioural, correlational, causal"),
        (low, {"refuted_by": []}, "needs refuted_by: name the controls on which the sentence is false"),
        (
            low,
            {"refuted_by": control("a")},
            "low: refuted_by is the control 'a' itself; give a list of controls, such as",
        ),
        (low, {"refuted_by": "a"}, "low: refuted_by is 'a'; give a list of controls, such as [UNTRAINED]"),
        (low, {"refuted_by": None}, "low: refuted_by is None; give a list of controls"),
        (low, {"refuted_by": ["untrained"]}, "names 'untrained' as a control; give a Control"),
        (low, {"refuted_by": [control("a"), control("a")]}, "names a control twice, or two controls of one name: 'a'"),
        (unmeasured, {}, "must take subject and measure, each by its name and without a default"),
        (by_default, {}, "must take subject and measure, each by its name and without a default"),
        (by_position, {}, "must take subject and measure, each by its name and without a default"),
    ],
)
def test_a_mark_that_breaks_a_rule_is_refused(body, changes, problem):
    with pytest.raises(ClaimError) as caught:
        claimed(control(), body=body, **changes)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_problems_are_all_named():
    with pytest.raises(ClaimError, match=r"has no docstring.*; has no source.*; needs refuted_by"):
        claimed(body=silent, source="")
