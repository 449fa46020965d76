"""Every rule of claims has a claim here that breaks it, and is seen to be caught."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nopos.storage import checkpoints
from nopos.subjects.controls import LEAKING_POSITIONS, reference
from nopos.subjects.shipped import CLAIMS
from nopos.subjects.sizes import TRAINED
from tests.support.claim_sessions import GOOD, and_then, check_rejected, measuring


def test_a_good_claim_passes_and_is_recorded_with_its_margin(run):
    result, ledger = run(GOOD)
    result.assert_outcomes(passed=1)
    subject, control = ledger["subjects"]
    assert (subject["name"], subject["role"], control["name"], control["role"]) == (
        "reference",
        "subject",
        "untrained",
        "control",
    )
    (recorded,) = subject["claims"]
    assert recorded["statement"] == "The loss is low."
    assert recorded["verdict"] == "holds"
    assert recorded["as_expected"] is True
    assert recorded["controls"] == [{"name": "untrained", "kind": "broken", "verdict": "refuted"}]
    (measurement,) = recorded["measurements"]
    assert (measurement["operator"], measurement["limit"]) == ("<", 0.1)
    assert measurement["refuted_by"] == [{"name": "untrained", "kind": "broken"}]
    assert measurement["unit"] == "nats"
    assert measurement["margin"] == pytest.approx(0.1 - measurement["value"])
    assert control["claims"][0]["measurements"][0]["holds"] is False


def test_a_false_claim_fails_with_subject_value_and_bound(run):
    check_rejected(run, GOOD.replace("< 0.1", "< 1e-6"), "the loss is low, on reference: refuted: loss: got 0.00")


def test_every_comparison_is_recorded_when_an_early_one_is_false(run):
    body = GOOD.replace("< 0.1", "< 1e-6") + '    assert measure("accuracy", subject.accuracy_at(1)) > 0.999\n'
    _, ledger = run(body)
    assert [item["holds"] for item in ledger["subjects"][0]["claims"][0]["measurements"]] == [False, True]


BROKEN = [
    pytest.param(GOOD.replace("'''The loss is low.'''", "pass"), "has no docstring", id="no docstring"),
    pytest.param(GOOD.split("    assert", maxsplit=1)[0], "asserts nothing", id="no comparison at all"),
    pytest.param(GOOD.replace('source="here"', 'source=""'), "has no source", id="no source"),
    pytest.param(GOOD.replace("behavioural", "certain"), "evidence is 'certain'", id="unknown evidence"),
    pytest.param(GOOD.replace("[UNTRAINED]", "[]"), "needs refuted_by", id="no control"),
    pytest.param(GOOD.replace("[UNTRAINED]", "[UNTRAINED, UNTRAINED]"), "names a control twice", id="control twice"),
    pytest.param(
        GOOD.replace("[UNTRAINED]", "[UNTRAINED, Control('untrained', 'nothing', reference, 'broken')]"),
        "names a control twice, or two controls of one name",
        id="two controls of one name",
    ),
    pytest.param(
        measuring("subject.loss - 0.5 * subject.accuracy_at(1)"),
        "0.5 in `0.5 * subject.accuracy_at(1)` is a second free number that hides in a measurement",
        id="a second free number",
    ),
    pytest.param(
        GOOD.replace("assert measure", "result = measure"),
        "uses measure outside an assert",
        id="comparison outside an assert",
    ),
    pytest.param(
        and_then('low = measure("again", subject.loss) < 1'), "uses measure outside an assert", id="one outside"
    ),
    pytest.param(
        and_then('assert not measure("again", subject.loss) > 1'), "is not of the form", id="negated comparison"
    ),
    pytest.param(
        and_then('assert measure("again", subject.loss) - measure("more", 1.0) < 1'),
        "is not of the form",
        id="difference taken outside measure",
    ),
    pytest.param(
        and_then('assert 0 < measure("again", subject.loss) < 1'), "is not of the form", id="two bounds at once"
    ),
    pytest.param(and_then("assert subject.loss < 1"), "is not of the form", id="assert without a measurement"),
    pytest.param(and_then("helper = measure"), "uses measure outside an assert", id="measure handed on"),
    pytest.param(
        GOOD.replace("    assert", "    for _ in ():\n        assert"),
        "nothing was compared",
        id="loop that never runs",
    ),
    pytest.param(and_then('assert measure("loss", subject.loss) < 1'), "is measured twice", id="name used twice"),
    pytest.param(
        and_then('assert measure("again", float("nan") * subject.loss) < 1'),
        "it must be finite",
        id="value that is not finite",
    ),
    pytest.param(
        and_then('assert measure("again", subject.loss) < float("inf")'),
        "it must be finite",
        id="bound that is not finite",
    ),
    pytest.param(
        and_then('assert measure("again", [subject.loss]) < 1'), "it must be a number", id="value of another type"
    ),
    pytest.param(
        and_then('assert measure("again", subject.loss) != 2'), "almost any value passes", id="compared with !="
    ),
    pytest.param(and_then('pytest.skip("not today")'), "may not skip or xfail (not today)", id="skip"),
    pytest.param(and_then('pytest.xfail("not today")'), "may not skip or xfail (not today)", id="xfail"),
    pytest.param(
        and_then("if subject.loss > 1:", '    pytest.skip("bad model")'),
        "control untrained: ClaimError: a claim may not skip",
        id="skip on a control alone",
    ),
    pytest.param(
        and_then("if subject.loss > 1:", "    raise ValueError('bad model')"),
        "control untrained: ValueError: bad model; an error is never a refutation",
        id="exception on a control alone",
    ),
    pytest.param(
        and_then('assert measure("accuracy", subject.accuracy_at(1)) > -1'),
        "cannot tell reference from untrained: 'accuracy' is false on none of them",
        id="a comparison that no control refutes",
    ),
    pytest.param(
        GOOD.replace("behavioural", "causal").replace("[UNTRAINED]", "[UNTRAINED, HALF_TRAINED, TWO_BACK]"),
        "cannot tell the mechanism from being good at the task",
        id="a mechanism that any bad model refutes by being bad",
    ),
    pytest.param(
        measuring("subject.loss", "subject.model.W = subject.model.blocks[1].attn.W_Q.data.add_(1)"),
        "a test changed its weights",
        id="weights changed",
    ),
    pytest.param(
        measuring("subject.loss", "subject.folded.unembed.b_U.data.add_(1)"),
        "a test changed its folded model",
        id="folded model changed",
    ),
    pytest.param(
        measuring("subject.loss", "subject.tokens[:, 1] = 5"), "a test changed its tokens", id="tokens changed"
    ),
    pytest.param(
        measuring("subject.loss", 'subject.model.add_hook("hook_embed", lambda value, hook: None)'),
        "a test changed its hooks",
        id="hook left behind",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("body", "message"), BROKEN)
def test_a_claim_that_breaks_a_rule_is_caught(run, body, message):
    check_rejected(run, body, message)


def test_the_same_mechanism_claim_passes_with_a_control_that_solves_the_task(run):
    """The counterpart of the rule on bad models: what is measured tells two good models apart."""
    result, _ = run("""
from nopos.methods.attention import effect_of_knock_out

@claim(evidence="causal", source="here", refuted_by=[LEARNED_POSITIONS])
def test_layer_1_needs_1_back(subject, measure):
    '''It does.'''
    assert measure("added", subject.run(effect_of_knock_out, layer=1, offset=1).answers_changed) > 0.7
""")
    result.assert_outcomes(passed=1)


def test_a_changed_subject_is_mended_for_the_next_test(run):
    spoiler = GOOD.replace("assert", "subject.model.unembed.W_U.data.mul_(0)\n    assert").replace(
        "is_low", "is_spoilt"
    )
    result, _ = run(spoiler + GOOD)
    result.assert_outcomes(passed=1, failed=1)


def test_an_ordinary_test_may_not_change_its_subject_either(run):
    check_rejected(
        run,
        "def test_spoiler(nopos_subject):\n    nopos_subject.model.unembed.W_U.data.mul_(0)\n",
        "a test changed its weights",
    )


def test_fixtures_called_subject_and_measure_are_anybodys(run):
    own = """
@pytest.fixture(params=["physics", "art"])
def subject(request):
    return request.param

@pytest.fixture
def measure():
    return len

def test_a_word_is_long(subject, measure):
    assert measure(subject) > 2
"""
    result, ledger = run(own + GOOD)
    result.assert_outcomes(passed=3)
    assert [one["name"] for one in ledger["subjects"]] == ["reference", "untrained"]


def test_a_claim_that_was_not_reached_is_not_run_rather_than_held(run):
    result, ledger = run(GOOD.replace("< 0.1", "< 1e-6") + GOOD.replace("is_low", "is_low_again"), "-x")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [recorded["verdict"] for recorded in ledger["subjects"][0]["claims"]] == ["refuted", "not run"]


@pytest.mark.slow
def test_the_ledger_is_the_same_under_xdist(run):
    body = GOOD + GOOD.replace("is_low", "is_low_again")

    def content(ledger):
        for subject in ledger["subjects"]:
            for recorded in subject["claims"]:
                recorded.pop("seconds")
        return ledger["subjects"]

    _, alone = run(body)
    result, shared = run(body, "-n", "2")
    result.assert_outcomes(passed=2)
    assert content(shared) == content(alone)


def test_loading_never_mends_a_leaking_W_pos(run, tmp_path):
    leaking = replace(
        LEAKING_POSITIONS.model_for(reference()).checkpoint,
        recipe="notebook",
        train=TRAINED["reference"].train,
        seed=0,
        made_with={},
    )
    path = tmp_path / "leaking.safetensors"
    checkpoints.save(leaking, path)
    result, _ = run(
        """
@claim(evidence="behavioural", source="here", refuted_by=[LEAKING_POSITIONS])
def test_W_pos_is_zero(subject, measure):
    '''It is.'''
    assert measure("W_pos", subject.model.pos_embed.W_pos.abs().max().item()) == 0
""",
        f"--nopos-checkpoint={path}",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *W_pos: got 0.00*, expected == 0.0"])


FIVE = (CLAIMS / "test_5_count.py").read_text()
HONEST = 'assert measure("share of answers changed, the key of BOS averaged", effect.answers_changed) > 0.4'


def test_a_shipped_claim_weakened_until_its_controls_pass_is_caught(run):
    assert HONEST in FIVE
    weakened = FIVE.replace(HONEST, HONEST.replace("> 0.4", "> -1.0")).replace(
        "from __future__ import annotations\n", ""
    )
    check_rejected(
        run,
        weakened,
        "cannot tell reference from learned positions, relay, without BOS key: "
        "'share of answers changed, the key of BOS averaged' is false on none of them",
        "-k=test_the_count_comes_from_the_key_of_BOS",
    )
