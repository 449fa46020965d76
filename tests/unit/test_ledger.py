from __future__ import annotations

import json

import pytest

from nopos.ledger import Ledger, as_expected, sentence


def recorded(claim_id="test_a.py::test_W_pos_is_zero", verdict="holds", **changes):
    return {
        "id": claim_id,
        "statement": "It is.",
        "rung": "causal",
        "source": "here",
        "expect": "holds",
        "verdict": verdict,
        "seconds": 0.5,
        "measurements": [
            {"name": "loss", "value": 0.25, "unit": "nats", "bound": "< 1", "margin": 0.75, "holds": True},
            {"name": "share", "value": 2.0, "unit": "", "bound": "< 1", "margin": -1.0, "holds": False},
        ],
        "controls": [{"name": "untrained", "verdict": "refuted"}, {"name": "relay", "verdict": "refuted"}],
        "problems": [],
        "arrays": None,
    } | changes


def known(name, role="subject"):
    return {"name": name, "role": role, "description": "d", "sha256": "ab" * 32, "config": {}}


def test_the_name_of_a_claim_is_its_sentence_and_weights_keep_their_names():
    assert sentence("test_a.py::test_W_pos_is_zero") == "W_pos is zero"
    assert sentence("test_a.py::test_how_b_U_and_a_W_E_differ_from_WB_x") == "how b_U and a W_E differ from WB x"


def test_subjects_come_first_and_claims_in_the_order_planned():
    ledger = Ledger()
    ledger.plan({"subject": "m", "claim": recorded(claim_id, "not run")} for claim_id in ("f::test_1", "f::test_2"))
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


def test_a_subject_that_never_loaded_is_listed_with_what_it_was_to_show():
    ledger = Ledger()
    ledger.plan([{"subject": "m", "claim": recorded(verdict="not run")}])
    (subject,) = ledger.subjects()
    assert (subject["name"], subject["sha256"], subject["claims"][0]["verdict"]) == ("m", None, "not run")
    assert "  0 of 1 claims came out as expected, all but:" in ledger.table()
    assert not ledger.as_expected()


def test_the_json_has_the_documented_shape():
    ledger = Ledger()
    assert not ledger
    ledger.add(known("m"), recorded())
    assert ledger
    content = json.loads(ledger.to_json(command="nopos verify", seconds=1.234))
    assert list(content) == ["schema", "command", "environment", "seconds", "subjects"]
    assert (content["schema"], content["command"], content["seconds"]) == (1, "nopos verify", 1.23)
    assert {"python", "platform", "machine", "cpus", "versions"} <= set(content["environment"])
    assert content["environment"]["versions"]["torch"]


def test_a_value_that_is_no_json_is_refused():
    ledger = Ledger()
    ledger.add(known("m"), recorded(seconds=float("nan")))
    with pytest.raises(ValueError, match="JSON"):
        ledger.to_json(command="", seconds=0)


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, True),
        ({"verdict": "refuted"}, False),
        ({"verdict": "refuted", "expect": "refuted"}, True),
        ({"verdict": "not run"}, False),
        ({"problems": ["toothless"]}, False),
    ],
)
def test_what_counts_as_expected(changes, good):
    assert as_expected(recorded(**changes)) is good


def test_the_table_names_claim_value_bound_and_controls():
    ledger = Ledger()
    ledger.add(known("m"), recorded(problems=["cannot tell m from untrained"], verdict="error"))
    ledger.add(known("c", "control"), recorded())
    text = "\n".join(ledger.table())
    assert "m (d, sha256 abababababab)" in text
    assert "W_pos is zero" in text
    assert "ERROR !" in text
    assert "refuted on untrained, relay" in text
    assert "! cannot tell m from untrained" in text
    assert "0.25 nats  < 1" in text
    assert "x share" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_a_false_comparison_is_told_once_and_other_problems_too():
    ledger = Ledger()
    ledger.add(
        known("m"), recorded(problems=["refuted: share: got 2, expected < 1", "does not hold on c"], verdict="refuted")
    )
    text = "\n".join(ledger.table())
    assert "got 2, expected < 1" not in text
    assert "! does not hold on c" in text
    assert text.endswith("all but:\n    W_pos is zero")


def test_a_bound_is_rounded_for_the_eye_and_whole_in_the_json():
    exact = {"name": "loss", "value": 0.1, "unit": "", "bound": "< 2.8186411856262508", "margin": 2.7, "holds": True}
    ledger = Ledger()
    ledger.add(known("m"), recorded(measurements=[exact]))
    assert any(line.endswith("0.1  < 2.8186") for line in ledger.table())
    assert "2.8186411856262508" in ledger.to_json(command="", seconds=0)


def test_a_claim_whose_fixtures_failed_is_an_error_with_its_reason():
    ledger = Ledger()
    ledger.plan([{"subject": "m", "claim": recorded(verdict="not run")}])
    ledger.fail("m", "test_a.py::test_W_pos_is_zero", "setup failed: no such thing")
    (claim,) = ledger.subjects()[0]["claims"]
    assert (claim["verdict"], claim["problems"]) == ("error", ["setup failed: no such thing"])
