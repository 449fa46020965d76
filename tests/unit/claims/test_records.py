from __future__ import annotations

import json

from nopos.claims.control import Control
from nopos.claims.outcome import Controls
from nopos.claims.records import failed_record, planned_record, records, unloaded_record
from nopos.claims.verdict import check
from tests.support.fake_subjects import Fake, claimed, control


def recorded(claim, subject=None):
    subject, controls = subject or Fake(), Controls()
    return records(check(claim, subject, controls), subject, controls)


def test_a_verdict_becomes_an_entry_for_the_subject_and_for_each_control():
    claim = claimed(control("bad"), control("worse", "near miss"), requested="a low loss", refutes="it is high")
    subject, bad, worse = recorded(claim)
    assert list(subject["subject"]) == [
        "name", "role", "kind", "number", "made_for", "description", "sha256", "config", "recipe", "seed",
    ]  # fmt: skip
    identified = [[entry["subject"][key] for key in ("name", "role", "kind")] for entry in (subject, bad, worse)]
    assert identified == [
        ["good", "subject", None],
        ["bad", "control", "broken"],
        ["worse", "control", "near miss"],
    ]
    assert (subject["subject"]["description"], bad["subject"]["description"]) == ("a fake", "bad in all things")


def test_two_controls_of_which_all_else_is_the_same_have_two_numbers_whatever_is_evaluated_first():
    first, second = (claimed(control("spoilt", share=0.9 * number)) for number in (0, 1))
    for order in ((first, second), (second, first)):
        controls = Controls()
        for claim in (first, second):
            controls.plan(claim)
        numbers = {claim: records(check(claim, Fake(), controls), Fake(), controls)[1] for claim in order}
        assert [numbers[claim]["subject"]["number"] for claim in (first, second)] == [1, 2]


def test_a_control_that_is_made_for_each_subject_names_the_one_that_it_is_made_for():
    def made(subject):
        return Fake("bad", {"loss": 9.0 + subject["loss"], "share": 0.1})

    for_each = Control("bad", "all", made, "broken")
    entries = recorded(claimed(for_each, control("worse")), Fake("mine"))
    assert [entry["subject"]["made_for"] for entry in entries] == [None, "mine", None]


def test_a_claim_on_its_subject_has_all_that_the_verdict_says():
    claim = claimed(control("bad"), control("worse", "near miss", share=0.9), requested="a low loss", refutes="high")
    (entry, *_) = recorded(claim)
    seconds = entry["claim"].pop("seconds")
    assert seconds == round(seconds, 3)
    both = [{"name": "bad", "kind": "broken"}, {"name": "worse", "kind": "near miss"}]
    assert entry["claim"] == {
        "id": "fake_subjects.py::low",
        "statement": "The loss is low.",
        "evidence": "behavioural",
        "source": "here",
        "refutes": "high",
        "requested": "a low loss",
        "verdict": "holds",
        "as_expected": True,
        "reason": None,
        "measurements": [
            {
                "name": "loss", "value": 0.0, "unit": "nats", "operator": "<", "limit": 1.0, "margin": 1.0,
                "holds": True, "refuted_by": both,
            },
            {
                "name": "share", "value": 0.9, "unit": "", "operator": ">", "limit": 0.5, "margin": 0.4,
                "holds": True, "refuted_by": both[:1],
            },
        ],
        "controls": [{**named, "verdict": "refuted"} for named in both],
    }  # fmt: skip


def test_a_claim_on_a_control_is_measured_and_has_no_expectation_of_its_own():
    _, entry = recorded(claimed(control()))
    claim = entry["claim"]
    assert (claim["verdict"], claim["as_expected"], claim["reason"]) == ("refuted", None, None)
    assert [item["holds"] for item in claim["measurements"]] == [False, False]
    assert claim["controls"] == []


def test_a_control_that_cannot_be_built_has_no_entry_and_is_an_error_in_the_subjects():
    (entry,) = recorded(claimed(Control("broken", "everything", lambda: 1 / 0, "broken")))
    assert entry["claim"]["controls"] == [{"name": "broken", "kind": "broken", "verdict": "error"}]
    assert "ZeroDivisionError" in entry["claim"]["reason"]


def test_records_are_plain_values():
    for entry in recorded(claimed(control())):
        assert json.loads(json.dumps(entry)) == entry


def test_a_planned_claim_and_an_unloaded_subject_have_the_same_keys():
    claim = claimed(control())
    entry, _ = recorded(claim)
    planned = planned_record(claim)
    assert list(planned) == list(entry["claim"])
    assert (planned["verdict"], planned["as_expected"]) == ("not run", False)
    assert planned["reason"].startswith("low: was to run and did not (tests/support/fake_subjects.py:")
    assert list(unloaded_record("m")) == list(entry["subject"])
    assert (unloaded_record("m")["description"], unloaded_record("m")["sha256"]) == ("not loaded", None)


def test_a_claim_whose_fixtures_failed_is_an_error_and_keeps_what_was_wrong_with_it_before():
    (held, _), (refuted, _) = (
        recorded(claimed(control())),
        recorded(claimed(control()), Fake("bad", {"loss": 2, "share": 1})),
    )
    for claim, reason in (
        (planned_record(claimed(control())), "setup failed"),
        (held["claim"], "setup failed"),
        (refuted["claim"], f"{refuted['claim']['reason']}; setup failed"),
    ):
        failed = failed_record(claim, "setup failed")
        assert (failed["verdict"], failed["as_expected"], failed["reason"]) == ("error", False, reason)
