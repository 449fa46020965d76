from __future__ import annotations

import pytest
import torch

from nopos.analysis.neurons import mlp_activations
from nopos.analysis.replacement import loss_with
from nopos.controls import RELAY, TWO_BACK, UNTRAINED, reference
from nopos.data import held_out_tokens, mean_loss
from nopos.errors import ClaimError
from nopos.subject import Subject, held_out_loss


@pytest.fixture(scope="module")
def model_under_test():
    return reference()


def test_a_subject_is_measured_on_the_cpu_in_float32(model_under_test):
    for parameter in model_under_test.model.parameters():
        assert (parameter.device.type, parameter.dtype) == ("cpu", torch.float32)


def test_loss_and_accuracy_are_those_of_the_held_out_tokens(model_under_test):
    tokens = held_out_tokens(model_under_test.config, 256)
    logits = model_under_test.model(tokens)
    assert model_under_test.loss == mean_loss(logits, tokens).item()
    right = logits[:, 1:].argmax(-1) == tokens[:, :-1]
    assert model_under_test.accuracy == pytest.approx(right.double().mean().item())


def test_analyses_are_made_on_the_first_of_them_and_means_are_of_others(model_under_test):
    assert torch.equal(model_under_test.tokens, held_out_tokens(model_under_test.config, 256)[:64])
    assert model_under_test.other_tokens.shape == model_under_test.tokens.shape
    own = {tuple(row) for row in held_out_tokens(model_under_test.config, 256).tolist()}
    assert not own & {tuple(row) for row in model_under_test.other_tokens.tolist()}


def test_an_analysis_that_the_loss_is_made_with_runs_on_its_own_tokens(model_under_test):
    assert model_under_test.run(held_out_loss) != model_under_test.loss
    logits = model_under_test.model(model_under_test.tokens)
    assert model_under_test.run(held_out_loss) == mean_loss(logits, model_under_test.tokens).item()


def test_a_standing_edit_is_part_of_the_subject_and_rebuilt_with_it():
    good = reference().checkpoint
    subject = Subject("silenced", good, interventions={"blocks.1.hook_attn_out": torch.zeros_like})
    loss = subject.loss
    assert loss > 5
    expected = loss_with(reference().model, subject.tokens, {"blocks.1.hook_attn_out": torch.zeros_like})
    assert mean_loss(subject.model(subject.tokens), subject.tokens).item() == pytest.approx(expected)
    with pytest.raises(ClaimError, match="changed its hooks"), subject.proven_unchanged():
        subject.model.reset_hooks(including_permanent=True)
    assert subject.loss == loss
    assert subject.model.hook_dict["blocks.1.hook_attn_out"].has_hooks()
    with subject.proven_unchanged():
        subject.run(mlp_activations, layer=0)
    subject.model.reset_hooks()
    assert subject.loss == loss


def test_a_result_is_computed_once_for_each_set_of_options(model_under_test):
    calls = []

    def analysis(model, tokens, *, layer=0):
        calls.append(layer)
        return layer + 0.5

    assert [model_under_test.run(analysis, layer=layer) for layer in (1, 2, 1)] == [1.5, 2.5, 1.5]
    assert calls == [1, 2]


def test_only_a_good_model_solves_the_task(model_under_test):
    solves = {control.name: control.build().solves_the_task() for control in (RELAY, TWO_BACK, UNTRAINED)}
    assert solves == {"relay": True, "two back": False, "untrained": False}
    assert model_under_test.solves_the_task()


def test_a_change_is_found_named_and_mended():
    subject = reference()
    loss = subject.loss

    def spoil():
        with subject.proven_unchanged():
            subject.model.unembed.b_U.data.add_(1)
            subject.model.add_hook("hook_embed", lambda activation, hook: activation * 0)

    with pytest.raises(ClaimError, match="reference: a test changed its weights and hooks"):
        spoil()
    assert subject.loss == loss
    with subject.proven_unchanged():
        subject.model.run_with_hooks(subject.tokens[:1], fwd_hooks=[("hook_embed", lambda activation, hook: None)])


def test_a_failure_inside_is_not_hidden_by_the_check():
    subject = UNTRAINED.build()

    def spoil_and_fail():
        with subject.proven_unchanged():
            subject.model.unembed.b_U.data.add_(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spoil_and_fail()
    assert subject.model.unembed.b_U.abs().max() == 0
