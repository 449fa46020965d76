from __future__ import annotations

import pytest

from nopos.claims.ledger import Ledger
from nopos.claims.table import WIDTH, table
from tests.support.claim_records import REFUTERS, known, measured, not_run, recorded

BOTH = "false on untrained (broken); relay (other mechanism)"


def lines(*claims, subject="m"):
    """The table of these claims on one subject."""
    ledger = Ledger()
    for claim in claims:
        ledger.add(known(subject), claim)
    return table(ledger)


def test_the_table_names_subject_claim_value_and_bound():
    text = "\n".join(lines(recorded()))
    assert "m (d, sha256 abababababab)" in text
    assert "\n  W_pos is zero\n      holds · causal\n" in text
    assert "0.25 nats  < 1\n" in text
    assert text.endswith("  1 of 1 claims came out as expected")


def test_what_is_out_of_scope_has_its_reason_and_is_counted_apart():
    claims = [
        recorded(f"f::test_{name}", "out of scope", as_expected=None, reason=reason, measurements=[], controls=[])
        for name, reason in (("a", "needs two layers"), ("b", "needs one head"), ("c", "needs two layers"))
    ]
    shown = lines(recorded(), *claims, recorded("f::test_d", "refuted"))
    text = "\n".join(shown)
    assert "  a\n      out of scope · causal\n      needs two layers\n" in text
    assert "  1 of 2 claims came out as expected, all but:\n    d: share: got 2" in text
    assert shown[-1] == "  out of scope are 3 more: needs two layers (2); needs one head (1)"
    few = lines(recorded(), *claims)
    assert "  1 of 1 claims came out as expected" in few


def test_controls_are_no_subjects_of_the_table():
    ledger = Ledger()
    ledger.add(known("m"), recorded())
    ledger.add(known("c", "control"), recorded("f::test_other"))
    assert "other\n" not in "\n".join(table(ledger))


def test_controls_that_refute_every_comparison_are_named_once_with_their_kind():
    assert [line.strip() for line in lines(recorded()) if "false on" in line] == [f"each {BOTH}"]


def test_controls_are_named_for_each_comparison_where_they_differ():
    claim = recorded(measurements=[measured("loss", 0.2), measured("share", 0.3, refuted_by=REFUTERS[:1])])
    shown = [line.strip() for line in lines(claim) if "false on" in line]
    assert shown == [BOTH, "false on untrained (broken)"]


def test_controls_of_one_kind_share_it():
    refuters = [REFUTERS[0], REFUTERS[1], {"name": "half trained", "kind": "broken"}]
    claim = recorded(measurements=[measured("loss", 0.2, refuted_by=refuters)])
    (shown,) = [line.strip() for line in lines(claim) if "false on" in line]
    assert shown == "false on untrained, half trained (broken); relay (other mechanism)"


def test_a_comparison_that_nothing_refutes_has_no_such_line():
    claim = recorded(measurements=[measured("loss", 0.2, refuted_by=[])])
    assert not any("false on" in line for line in lines(claim))


def test_a_false_comparison_has_a_cross_and_the_claim_its_reason():
    text = "\n".join(lines(recorded(verdict="refuted")))
    assert "REFUTED ! · causal" in text
    assert "    x share" in text
    assert "      loss" in text
    assert "    ! it is, on m: refuted: share: got 2" in text
    assert text.endswith(
        "  0 of 1 claims came out as expected, all but:\n    W_pos is zero: share: got 2, expected < 1"
    )


def test_a_control_that_does_not_refute_the_claim_is_named_beside_the_verdict():
    controls = [REFUTERS[0] | {"verdict": "refuted"}, REFUTERS[1] | {"verdict": "holds"}]
    assert "      holds · causal · holds on relay (other mechanism)" in lines(recorded(controls=controls))


def test_what_the_claim_refutes_and_that_it_was_requested_are_printed():
    text = lines(recorded(refutes="W_pos matters", requested="a zero W_pos"))
    assert "      holds · causal · requested" in text
    assert "      refutes: W_pos matters" in text


def test_a_bound_is_rounded_for_the_eye_and_whole_in_the_json():
    ledger = Ledger()
    ledger.add(known("m"), recorded(measurements=[measured("loss", 0.1, limit=2.8186411856262508)]))
    assert any(line.endswith("0.1  < 2.8186") for line in table(ledger))
    assert "2.8186411856262508" in ledger.to_json(command="", seconds=0)


def test_operators_of_one_and_two_characters_stand_in_one_column():
    claim = recorded(measurements=[measured("loss", 0.1), measured("exact", 0.0, operator="==", limit=0.0)])
    below, equal = (next(line for line in lines(claim) if name in line) for name in ("loss", "exact"))
    assert below.index("<") == equal.index("==") + 1


def test_a_subject_that_never_loaded_and_a_run_cut_short_say_so():
    ledger = Ledger()
    ledger.plan("m", not_run())
    ledger.cut_short = True
    text = "\n".join(table(ledger))
    assert "m (not loaded)" in text
    assert "  0 of 1 claims came out as expected\n  1 did not run: W_pos is zero" in text
    assert text.endswith("The run was cut short: claims that were not reached are not listed.")


@pytest.mark.parametrize(
    ("described", "line"),
    [
        ({}, "m (d, sha256 abababababab)"),
        ({"description": None}, "m (sha256 abababababab)"),
        ({"sha256": None}, "m (d)"),
        ({"description": None, "sha256": None}, "m"),
    ],
)
def test_a_subject_is_described_by_what_is_known_of_it(described, line):
    ledger = Ledger()
    ledger.add(known("m", **described), recorded())
    assert line in table(ledger)


@pytest.mark.parametrize("many", [1, 12])
def test_no_line_is_longer_than_the_width(many):
    refuters = [{"name": f"control number {n}", "kind": "other mechanism"} for n in range(many)]
    claim = recorded(
        f"f::test_{'_'.join(['word'] * 40)}",
        "error",
        reason="cannot tell m " * 30,
        refutes="it is otherwise " * 20,
        controls=[control | {"verdict": "error"} for control in refuters],
        measurements=[
            measured("a measurement with a long name that says all", 1e-12, "positions", refuted_by=refuters)
        ],
    )
    assert max(len(line) for line in lines(claim)) <= WIDTH == 120


@pytest.mark.parametrize(
    ("limit", "printed"),
    [
        (0.9999999, "< 0.9999999"),
        (1.0, "< 1"),
        (2.8186411856262508, "< 2.8186"),
        (1e-9, "< 1e-09"),
        (0.6, "< 0.6"),
        (123456.0, "< 123456"),
        (0.200004, "< 0.200004"),
    ],
)
def test_a_bound_is_not_printed_as_another(limit, printed):
    ledger = Ledger()
    ledger.add(known("m"), recorded(measurements=[measured("loss", 0.1, limit=limit)]))
    assert any(line.rstrip().endswith(printed) for line in table(ledger))


@pytest.mark.parametrize(("missing", "named"), [(3, ""), (4, "; and 1 more"), (9, "; and 6 more")])
def test_of_many_claims_that_did_not_run_three_are_named(missing, named):
    ledger = Ledger()
    for number in range(missing):
        ledger.plan("m", not_run(f"a.py::test_it_is_{number}"))
    line = f"  {missing} did not run: it is 0; it is 1; it is 2{named}"
    assert table(ledger)[-1] == line


def test_titles_of_one_sentence_have_file_and_class():
    ids = ("a.py::test_it_is", "a.py::TestA::test_it_is[x::y]", "a.py::TestB::test_it_is[x::y]", "b.py::test_it_is")
    ledger = Ledger()
    for claim_id in ids:
        ledger.add(known("m"), recorded(claim_id))
    shown = [line.strip() for line in table(ledger) if line.strip().startswith("it is")]
    assert shown == ["it is (a.py)", "it is [x::y] (a.py::TestA)", "it is [x::y] (a.py::TestB)", "it is (b.py)"]
