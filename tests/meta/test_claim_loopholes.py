"""Ways in which a claim could cheat, or a ledger lie, each seen to be closed."""

from __future__ import annotations

import pytest
import torch._dynamo  # noqa: F401 - optimisers import it late, pytester forgets that, and it cannot load twice

from nopos.model import recipes
from nopos.storage import checkpoints
from tests.support.claim_sessions import GOOD, and_then, check_rejected, measuring

CAUSAL = GOOD.replace("behavioural", "causal")

CHEATS = [
    pytest.param(
        and_then('assert measure("again", subject.loss) is not None'), "is not of the form", id="compared with is"
    ),
    pytest.param(
        and_then('assert measure("again", subject.loss) in (1.0,)'), "is not of the form", id="compared with in"
    ),
    pytest.param(
        and_then("with pytest.raises(Exception):", '    assert measure("again", float("nan") * subject.loss) < 1'),
        "again is nan; it must be finite",
        id="an error that the body swallows",
    ),
    pytest.param(
        and_then("def inner(measure):", "    assert measure(1) < 2", "inner(lambda value: value)"),
        "has an inner function with a measure of its own",
        id="a measure of its own",
    ),
    pytest.param(
        and_then("if subject.loss > 1:", '    assert measure("again", subject.loss) < 0.5'),
        "compares other names or bounds on untrained than on reference",
        id="a comparison on the control alone",
    ),
    pytest.param(
        and_then('assert measure("again", subject.loss) < subject.loss'),
        "compares other names or bounds on untrained than on reference",
        id="another bound on the control",
    ),
    pytest.param(
        "CALLS = []\n"
        + GOOD.replace("assert", "CALLS.append(0)\n    assert")
        .replace("subject.loss", "len(CALLS)")
        .replace("0.1", "2"),
        "`len(CALLS)` is measured and does not come from the subject",
        id="decided by how often it was called",
    ),
    pytest.param(
        CAUSAL.replace("UNTRAINED", "LEARNED_POSITIONS").replace(
            "subject.loss", 'float(subject.config.positions == "learned")'
        ),
        "is measured and does not come from the subject; its config and task may be read, not measured",
        id="decided by the sizes",
    ),
    pytest.param(
        GOOD.replace("measure)", "measure=None)"),
        "must take subject and measure, each by its name and without a default",
        id="a measure that can be left out",
    ),
    pytest.param(
        measuring('len(subject.name) - len("reference")'),
        "`subject.name` can tell which model it is; a claim is decided by what is measured alone",
        id="decided by the name",
    ),
    pytest.param(
        measuring('float(subject.record()["recipe"] is None)'),
        "`subject.record` can tell which model it is",
        id="decided by the record",
    ),
    pytest.param(
        measuring("float(weights.seed is None)", "weights = subject.checkpoint"),
        "`weights.seed` can tell which model it is",
        id="decided by the training",
    ),
    pytest.param(
        measuring('len(one.name) - len("reference")', "one, = [subject]"),
        "`one.name` can tell which model it is",
        id="decided by the name of something made of it",
    ),
    pytest.param(
        GOOD.replace("measure)", "measure, request)"),
        "`request` can tell which model it is",
        id="asked of pytest",
    ),
    pytest.param(
        GOOD.replace('"loss", subject.loss, "nats"', '*("loss", subject.loss - 0.7)'),
        "is not of the form assert measure(name, value, unit) < bound",
        id="a value that is not seen",
    ),
    pytest.param(
        measuring("[0, 1][int(subject.loss > 0.7)]"),
        "0.7 in `subject.loss > 0.7` is a second free number",
        id="a number in an index that is measured",
    ),
    pytest.param(
        GOOD.replace("[UNTRAINED]", '["untrained"]'),
        "names 'untrained' as a control; give a Control",
        id="no control at all",
    ),
    pytest.param(
        CAUSAL.replace("[UNTRAINED]", "[UNTRAINED, LEARNED_POSITIONS]"),
        "cannot tell the mechanism from being good at the task",
        id="another mechanism is named but does not refute",
    ),
    pytest.param(
        CAUSAL.replace("[UNTRAINED]", "[LEAKING_POSITIONS]")
        .replace("subject.loss", "subject.model.pos_embed.W_pos.abs().max().item()")
        .replace("< 0.1", "== 0.0"),
        "cannot tell the mechanism from being good at the task",
        id="the reference model itself, damaged, as another mechanism",
    ),
    pytest.param(
        GOOD.replace("behavioural", "correlational"),
        "cannot tell the mechanism from being good at the task",
        id="a correlation that only a bad model refutes",
    ),
    pytest.param(
        measuring("subject.loss", "subject.model.blocks[0].attn.permitted[3, 3] = False"),
        "a test changed its weights",
        id="mask changed",
    ),
    pytest.param(
        measuring("subject.loss", 'subject.folded.add_hook("hook_embed", lambda value, hook: None)'),
        "a test changed its hooks",
        id="hook left on the folded model",
    ),
    pytest.param(
        measuring("subject.loss", 'subject.checkpoint.parameters["unembed.b_U"].add_(1)'),
        "a test changed its checkpoint",
        id="checkpoint changed",
    ),
    pytest.param(
        measuring("subject.run(lambda model, tokens, names: 0.0, names=[])"),
        "cannot be remembered (unhashable type: 'list'); give tuples",
        id="an option that cannot be remembered",
    ),
    pytest.param(
        GOOD.replace("[UNTRAINED]", "[UNTRAINED, Control('broken', 'everything', lambda: 1 / 0, 'broken')]"),
        "control broken: ZeroDivisionError: division by zero; an error is never a refutation",
        id="a control that cannot be built",
    ),
    pytest.param(
        "@pytest.fixture\ndef nopos_subject():\n    return UNTRAINED.model_for(reference())\n" + GOOD,
        "overridden",
        id="another subject than the one under test",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("body", "message"), CHEATS)
def test_a_cheat_is_caught(run, body, message):
    check_rejected(run, body, message)


@pytest.mark.parametrize("mark", ["@pytest.mark.skip", "@pytest.mark.xfail(strict=False)"])
def test_a_claim_that_a_mark_takes_out_does_not_count_as_expected(run, mark):
    result, ledger = run(mark + GOOD.replace("< 0.1", "< 1e-6"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert ledger["subjects"][0]["claims"][0]["verdict"] in ("not run", "refuted")


def test_a_fixture_that_fails_makes_the_claim_an_error_with_its_reason(run):
    broken = "\n@pytest.fixture\ndef broken():\n    raise ValueError('no such thing')\n"
    result, ledger = run(broken + GOOD.replace("measure)", "measure, broken)"))
    result.assert_outcomes(errors=1)
    (recorded,) = ledger["subjects"][0]["claims"]
    assert recorded["verdict"] == "error"
    assert recorded["reason"].startswith("setup failed")


def test_a_result_measured_on_changed_weights_is_not_remembered(run):
    """Change the weights, have the loss measured, change them back: the next claim must not be given that loss."""
    change = "subject.model.unembed.W_U.data.mul_({})\n    "
    poison = change.format(2) + "subject.loss\n    " + change.format(0.5)
    _, ledger = run(GOOD.replace("is_low", "is_poisoned").replace("assert", poison + "assert") + GOOD)
    first, second = (recorded["measurements"][0]["value"] for recorded in ledger["subjects"][0]["claims"])
    _, alone = run(GOOD)
    assert first == second == alone["subjects"][0]["claims"][0]["measurements"][0]["value"]


PARAMETRISED = """
@pytest.mark.parametrize("bound", [0.1, 1e-6, "0.1"])
@claim(evidence="behavioural", source="here", refuted_by=[UNTRAINED])
def test_the_loss_is_low(subject, measure, bound):
    '''It is.'''
    assert measure("loss", subject.loss) < float(bound)

class TestOther:
    @claim(evidence="behavioural", source="here", refuted_by=[UNTRAINED])
    def test_the_loss_is_low(self, subject, measure):
        '''It is.'''
        assert measure("loss", 0 * subject.loss) < 0.1
"""


def test_claims_with_parameters_and_in_classes_keep_their_own_controls_and_records(run):
    result, ledger = run(PARAMETRISED)
    result.assert_outcomes(passed=2, failed=2)
    verdicts = {recorded["id"].partition("::")[2]: recorded["verdict"] for recorded in ledger["subjects"][0]["claims"]}
    assert verdicts == {
        "test_the_loss_is_low[0.1_0]": "holds",
        "test_the_loss_is_low[1e-06]": "refuted",
        "test_the_loss_is_low[0.1_1]": "holds",
        "TestOther::test_the_loss_is_low": "error",
    }


ALIKE_BUT_FOR_THE_EDIT = (
    """
from nopos.subjects.subject import Subject

def edited(by):
    edits = {"blocks.1.hook_resid_post": lambda value: by * value}
    build = lambda: Subject("edited", reference().checkpoint, interventions=edits)
    return Control("edited", "some of it", build, "broken")

"""
    + GOOD.replace("[UNTRAINED]", "[edited(0.0)]")
    + GOOD.replace("is_low", "is_low_again").replace("[UNTRAINED]", "[edited(-1.0)]")
)


@pytest.mark.parametrize("options", [(), pytest.param(("-n2",), marks=pytest.mark.slow)], ids=["alone", "xdist"])
def test_two_controls_whose_records_are_alike_but_for_their_number_are_two_in_the_ledger(run, options):
    result, ledger = run(ALIKE_BUT_FOR_THE_EDIT, *options)
    result.assert_outcomes(passed=2)
    controls = [subject for subject in ledger["subjects"] if subject["role"] == "control"]
    claims = {one["number"]: [recorded["id"].partition("::")[2] for recorded in one["claims"]] for one in controls}
    assert claims == {1: ["test_the_loss_is_low"], 2: ["test_the_loss_is_low_again"]}


TWO_OF_ONE_NAME = (
    """
SPOILT = Control("spoilt", "everything", UNTRAINED.build, "broken")
UNSPOILT = Control("spoilt", "nothing", reference, "near miss")
"""
    + GOOD.replace("UNTRAINED", "SPOILT")
    + GOOD.replace("is_low", "is_low_again").replace("UNTRAINED", "UNSPOILT")
)


def test_a_claim_that_no_control_refutes_does_not_pass_through_the_model_of_another_control_of_its_name(run):
    result, ledger = run(TWO_OF_ONE_NAME)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*cannot tell reference from spoilt: 'loss' is false on none of them*"])
    controls = [subject for subject in ledger["subjects"] if subject["role"] == "control"]
    identified = [[subject[key] for key in ("name", "number", "kind")] for subject in controls]
    assert identified == [["spoilt", 1, "broken"], ["spoilt", 2, "near miss"]]


def test_collecting_alone_writes_and_prints_no_ledger(run):
    result, ledger = run(GOOD, "--collect-only")
    assert ledger is None
    assert "what was measured" not in result.stdout.str()


def test_the_slow_tier_checks_a_trained_notebook_model_and_two_sprints_beside_the_reference(run):
    result, _ = run(GOOD, "--collect-only", "-q", "-mslow", "--nopos-device=cpu")
    checked = [line.partition("[")[2].rstrip("]") for line in result.stdout.lines if "::" in line]
    assert checked == ["notebook seed 0", "sprint seed 100", "sprint seed 101"]


@pytest.mark.slow
def test_stopping_early_under_xdist_loses_no_claim(run):
    body = GOOD.replace("< 0.1", "< 1e-6") + GOOD.replace("is_low", "is_low_again")
    _, ledger = run(body, "-n1", "-x")
    assert [recorded["verdict"] for recorded in ledger["subjects"][0]["claims"]] == ["refuted", "not run"]


@pytest.mark.slow
def test_a_worker_that_goes_down_leaves_no_ledger_that_looks_whole(run):
    body = GOOD + GOOD.replace("is_low", "is_last").replace("assert", "__import__('os').abort()\n    assert")
    result, _ = run(body, "-n1", "--max-worker-restart=0")
    assert result.ret != pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*The run was cut short: claims that were not reached are not listed.*"])


@pytest.mark.parametrize(("options", "trainings"), [((), 1), (("--nopos-retrain",), 2)], ids=["cached", "retrained"])
def test_a_model_is_trained_again_only_when_asked(run, own_cache, monkeypatch, tiny_recipe, options, trainings):
    trained = []
    real = checkpoints.train_together
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny_recipe)
    monkeypatch.setattr(
        checkpoints, "train_together", lambda *arguments, **by: trained.append(1) or real(*arguments, **by)
    )
    run(GOOD, "--nopos-recipe=tiny")
    run(GOOD, "--nopos-recipe=tiny", *options)
    assert len(trained) == trainings
