from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
import torch

from nopos.claims.claim import claim, claim_of
from nopos.claims.outcome import Controls, OnControls
from nopos.claims.records import records
from nopos.claims.verdict import check
from nopos.model.config import ModelConfig
from nopos.populations import work
from nopos.populations.work import Trained
from nopos.storage import checkpoints
from nopos.storage.checkpoints import Serialised
from nopos.subjects.controls import LEARNED_POSITIONS, TWO_BACK, UNTRAINED, reference
from nopos.subjects.subject import Subject
from nopos.training import fused, trainer

KERNELS = [
    name
    for name in fused.KERNELS
    if name == "torch" or fused.why_not(ModelConfig(), torch.device("cpu"), "full") is None
]


NOTHING = OnControls({}, {})


def on_controls(recipe):
    """What came out on the controls of its size."""
    return work.joined([work.evaluate_controls(recipe.model, 0, 1)])[0]


@pytest.fixture
def several_claims(monkeypatch):
    """Two claims on some controls of several kinds, which some share."""

    @claim(evidence="behavioural", source="here", refuted_by=[UNTRAINED, TWO_BACK])
    def test_the_loss_is_low(subject, measure):
        """The loss is low."""
        assert measure("loss", subject.loss, "nats") < 0.1

    @claim(evidence="correlational", source="here", refuted_by=[LEARNED_POSITIONS])
    def test_W_pos_is_zero(subject, measure):
        """It is zero."""
        assert measure("largest", subject.model.pos_embed.W_pos.abs().max().item()) == 0.0

    found = tuple(claim_of(test) for test in (test_the_loss_is_low, test_W_pos_is_zero))
    monkeypatch.setattr(work.shipped, "shipped_claims", lambda: found)
    return found


@pytest.fixture
def diverging(tiny_recipe):
    return replace(tiny_recipe, train=replace(tiny_recipe.train, peak_lr=1e38))


@pytest.mark.parametrize("kernel", KERNELS)
def test_models_are_those_of_the_trainer_however_they_are_grouped(tiny_recipe, kernel):
    together = work.train(tiny_recipe, [0, 1, 2], "cpu", kernel).models
    alone = [work.train(tiny_recipe, [seed], "cpu", kernel).models[0] for seed in (0, 1, 2)]
    assert [one.weights for one in together] == [one.weights for one in alone]
    assert checkpoints.deserialised("tiny", together[1]).seed == 1
    made = checkpoints.train_together(tiny_recipe, [2], torch.device("cpu"), kernel=kernel)
    assert checkpoints.serialised(made[0]).weights == together[2].weights


@pytest.mark.parametrize("kernel", KERNELS)
def test_by_torchs_kernel_a_model_is_the_same_with_any_number_of_threads(tiny_recipe, kernel):
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            (model,) = work.train(tiny_recipe, [0], "cpu", kernel).models
            made.append((model.weights, model.manifest["made_with"].get("threads")))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert made[0] == made[1]
    assert made[0][1] == (1 if kernel == "torch" else None)


def test_a_model_that_diverges_has_failed_for_good(diverging):
    found = work.train(diverging, [0, 1], "cpu", "torch").models
    assert [one.final for one in found] == [True, True]
    assert found[1].reason.startswith("training tiny, seed 1: ")
    assert found[1].reason.endswith("; nothing was saved")


def test_models_for_which_there_is_no_memory_are_not_there_and_why_is(tiny_recipe, monkeypatch):
    monkeypatch.setattr(trainer, "_memory", lambda _: 0)
    found = work.train(tiny_recipe, [0, 1], "cpu", "torch")
    assert found.models == []
    assert "GiB of memory" in found.why_none


def test_a_calibration_times_as_many_models_as_there_is_memory_for(one_claim, own_cache, tiny_recipe, monkeypatch):
    real, asked = work.train, []

    def train(recipe, seeds, device, kernel):
        asked.append(len(seeds))
        fits = len(seeds) <= 2
        if fits:
            return real(recipe, seeds, device, kernel)
        return Trained(models=[], seconds=0.0, why_none="no memory")

    monkeypatch.setattr(work, "train", train)
    (seconds,) = work.calibrate([tiny_recipe], [5], "cpu", ["torch"], [on_controls(tiny_recipe)]).train
    assert asked == [5, 3, 2, 2, 2]
    assert seconds > 0


def test_a_ledger_has_the_claims_of_one_model_and_no_times(one_claim, own_cache, tiny_recipe):
    (given,) = work.train(tiny_recipe, [0], "cpu", "torch").models
    first, again = (work.check_claims("tiny-seed-0", given, on_controls(tiny_recipe)).ledger for _ in range(2))
    assert first == again
    (subject,) = first["subjects"]
    assert (subject["name"], subject["role"], subject["recipe"], subject["seed"]) == (
        "tiny-seed-0",
        "subject",
        "tiny",
        0,
    )
    (claim,) = subject["claims"]
    assert claim["verdict"] == "refuted"
    assert claim["controls"] == [{"name": "untrained", "kind": "broken", "verdict": "refuted"}]
    assert "seconds" not in claim
    assert first["complete"]


def test_claims_are_checked_with_one_thread_whatever_the_worker_has(one_claim, tiny_recipe, monkeypatch):
    seen, real = [], work.check
    monkeypatch.setattr(work, "check", lambda *these: seen.append(torch.get_num_threads()) or real(*these))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        work.check_claims("tiny", work.train(tiny_recipe, [0], "cpu", "torch").models[0], NOTHING)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_a_calibration_says_what_a_model_takes_and_leaves(one_claim, own_cache, tiny_recipe, diverging):
    found = work.calibrate([tiny_recipe, diverging], [2, 1], "cpu", ["torch"] * 2, [on_controls(tiny_recipe)] * 2)
    assert len(found.train) == 2
    assert min(found.train) > 0
    assert min(found.check) > 0
    model = work.train(tiny_recipe, [0], "cpu", "torch").models[0]
    files = len(model.weights) + len(json.dumps(model.manifest, indent=1))
    assert files < found.size[0] < files + 3000  # and the ledger of one claim


def test_controls_are_the_same_however_they_are_divided(several_claims, own_cache, tiny_recipe):
    """And a model that is checked with what came out elsewhere has the ledger of one beside controls of its own."""
    known, ledgers = {}, {}
    for shares in (1, 2, 7):
        divided = [work.evaluate_controls(tiny_recipe.model, share, shares) for share in range(shares)]
        known[shares], ledgers[shares] = work.joined(pickle.loads(pickle.dumps(divided)))
    assert ledgers[1] == ledgers[2] == ledgers[7]
    assert [subject["name"] for subject in ledgers[1]["subjects"]] == ["untrained", "two back", "learned positions"]
    assert all("seconds" not in claim for subject in ledgers[1]["subjects"] for claim in subject["claims"])
    found = [{key: (one.verdict, one.comparisons) for key, one in each.outcomes.items()} for each in known.values()]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 3
    assert set(known[1].solves) == {("learned positions", 1)}
    (given,) = work.train(tiny_recipe, [0], "cpu", "torch").models
    ledger = work.check_claims("tiny", given, known[2]).ledger
    subject, controls = Subject("tiny", checkpoints.deserialised("tiny", given)), Controls()
    for one, recorded in zip(several_claims, ledger["subjects"][0]["claims"], strict=True):
        alone = records(check(one, subject, controls), subject, controls)[0]["claim"]
        assert {name: value for name, value in alone.items() if name != "seconds"} == recorded


def test_a_worker_builds_no_control_to_check_a_model(one_claim, own_cache, tiny_recipe, monkeypatch):
    known = on_controls(tiny_recipe)
    monkeypatch.setattr(Controls, "subject", None)
    (given,) = work.train(tiny_recipe, [0], "cpu", "torch").models
    (claim,) = work.check_claims("tiny", given, known).ledger["subjects"][0]["claims"]
    assert claim["controls"] == [{"name": "untrained", "kind": "broken", "verdict": "refuted"}]


def test_seconds_of_training_are_those_of_few_steps_and_of_as_many_more_as_there_are(monkeypatch, tiny_recipe):
    def train(recipe, seeds, device, kernel):
        return Trained(models=[], seconds=1.0 + 0.1 * recipe.train.steps)

    monkeypatch.setattr(work, "train", train)
    recipe = replace(tiny_recipe, train=replace(tiny_recipe.train, steps=200))
    assert work._timed(recipe, 4, "torch", "cpu")[0] == pytest.approx((1.0 + 0.1 * 200) / 4)


def test_what_is_no_checkpoint_is_refused(one_claim):
    given = checkpoints.serialised(reference().checkpoint)
    with pytest.raises(checkpoints.CheckpointError, match="torn: is not a whole safetensors file"):
        work.check_claims("torn", Serialised(weights=given.weights[:100], manifest=given.manifest), NOTHING)
    other = {**given.manifest, "model": {**given.manifest["model"], "d_mlp": ModelConfig().d_mlp + 1}}
    with pytest.raises(checkpoints.CheckpointError, match=r"other: .* this model needs"):
        work.check_claims("other", Serialised(weights=given.weights, manifest=other), NOTHING)
