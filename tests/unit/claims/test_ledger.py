from __future__ import annotations

import json

import pytest

from nopos.claims.ledger import SCHEMA, Ledger
from tests.support.claim_records import known, not_run, recorded


def test_subjects_come_first_and_claims_in_the_order_planned():
    ledger = Ledger()
    for claim_id in ("f::test_1", "f::test_2"):
        ledger.plan("m", not_run(claim_id))
    ledger.add(known("c", "control"), recorded("f::test_2", "refuted"))
    ledger.add(known("c", "control"), recorded("f::test_1", "refuted"))
    ledger.add(known("m"), recorded("f::test_2"))
    subject, control = ledger.subjects()
    assert [(claim["id"], claim["verdict"]) for claim in subject["claims"]] == [
        ("f::test_1", "not run"),
        ("f::test_2", "holds"),
    ]
    assert [claim["id"] for claim in control["claims"]] == ["f::test_1", "f::test_2"]


def test_the_first_record_of_a_claim_on_a_control_stands():
    ledger = Ledger()
    ledger.add(known("c", "control"), recorded(verdict="refuted"))
    ledger.add(known("c", "control"), recorded(verdict="error"))
    assert ledger.subjects()[0]["claims"][0]["verdict"] == "refuted"


@pytest.mark.parametrize(
    "differs", [{"number": 2}, {"made_for": "m"}, {"sha256": "cd" * 32}, {"kind": "broken"}, {"description": "another"}]
)
def test_two_different_controls_of_one_name_both_appear(differs):
    ledger = Ledger()
    ledger.add(known("c", "control"), recorded("f::test_1", "refuted"))
    ledger.add(known("c", "control", **differs), recorded("f::test_1", "holds"))
    assert [subject["claims"][0]["verdict"] for subject in ledger.subjects()] == ["refuted", "holds"]


def test_a_subject_and_a_control_of_one_name_both_appear():
    ledger = Ledger()
    ledger.add(known("c"), recorded("f::test_1"))
    ledger.add(known("c", "control"), recorded("f::test_1", "refuted"))
    assert [subject["role"] for subject in ledger.subjects()] == ["subject", "control"]


def test_a_subject_that_never_loaded_is_listed_with_what_it_was_to_show():
    ledger = Ledger()
    ledger.plan("m", not_run())
    (subject,) = ledger.subjects()
    assert (subject["name"], subject["sha256"], subject["claims"][0]["verdict"]) == ("m", None, "not run")
    assert not ledger.as_expected()
    assert not ledger.complete


def test_the_json_has_the_documented_shape():
    ledger = Ledger()
    assert not ledger
    ledger.add(known("m"), recorded())
    assert ledger
    content = json.loads(ledger.to_json(command="nopos verify", seconds=1.234))
    assert list(content) == ["schema", "complete", "command", "environment", "seconds", "subjects"]
    assert (content["schema"], content["complete"]) == (SCHEMA, True) == (4, True)
    assert (content["command"], content["seconds"]) == ("nopos verify", 1.23)
    assert {"python", "platform", "machine", "cpus", "versions"} <= set(content["environment"])
    assert content["environment"]["versions"]["torch"]


def test_a_value_that_is_no_json_is_refused():
    ledger = Ledger()
    ledger.add(known("m"), recorded(seconds=float("nan")))
    with pytest.raises(ValueError, match="JSON"):
        ledger.to_json(command="", seconds=0)


def test_what_is_out_of_scope_is_no_failure_and_a_run_of_nothing_else_no_success():
    ledger = Ledger()
    ledger.add(known("m"), recorded("f::test_1", "out of scope", as_expected=None, reason="needs two layers"))
    assert (ledger.as_expected(), ledger.all_out_of_scope(), ledger.complete) == (False, True, True)
    ledger.add(known("m"), recorded("f::test_2"))
    assert (ledger.as_expected(), ledger.all_out_of_scope()) == (True, False)
    ledger.add(known("m"), recorded("f::test_3", "refuted"))
    assert not ledger.as_expected()


def test_a_run_is_as_expected_when_it_is_complete_and_every_claim_is():
    ledger = Ledger()
    ledger.add(known("m"), recorded("f::test_1"))
    ledger.add(known("c", "control"), recorded("f::test_1", "refuted"))
    assert ledger.as_expected()
    assert ledger.complete
    ledger.cut_short = True
    assert (ledger.as_expected(), ledger.complete) == (False, False)
    ledger.cut_short = False
    ledger.add(known("m"), recorded("f::test_2", "refuted"))
    assert (ledger.as_expected(), ledger.complete) == (False, True)


def test_a_claim_that_did_not_run_leaves_the_run_incomplete():
    ledger = Ledger()
    ledger.add(known("m"), recorded("f::test_1"))
    ledger.plan("m", not_run("f::test_2"))
    assert (ledger.as_expected(), ledger.complete) == (False, False)


def test_a_claim_whose_fixtures_failed_is_an_error_with_its_reason():
    ledger = Ledger()
    ledger.plan("m", not_run("f::test_1"))
    ledger.fail("m", "f::test_1", "setup failed: no such thing")
    (claim,) = ledger.subjects()[0]["claims"]
    assert (claim["verdict"], claim["as_expected"]) == ("error", False)
    assert claim["reason"] == "setup failed: no such thing"


def test_a_claim_that_held_and_whose_fixtures_failed_after_it_is_an_error_too():
    ledger = Ledger()
    for claim_id in ("f::test_1", "f::test_2"):
        ledger.plan("m", not_run(claim_id))
    ledger.add(known("m"), recorded("f::test_1"))
    ledger.add(known("m"), recorded("f::test_2", "refuted"))
    for claim_id in ("f::test_1", "f::test_2"):
        ledger.fail("m", claim_id, "teardown failed: no such thing")
    first, second = ledger.subjects()[0]["claims"]
    assert (first["verdict"], first["reason"]) == ("error", "teardown failed: no such thing")
    assert second["reason"] == "it is, on m: refuted: share: got 2; teardown failed: no such thing"
    assert not ledger.as_expected()
