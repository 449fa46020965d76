from __future__ import annotations

import pytest
import torch

from nopos.controls import RELAY, TWO_BACK, UNTRAINED, reference
from nopos.data import mean_loss
from nopos.errors import ClaimError


@pytest.fixture(scope="module")
def model_under_test():
    return reference()


def test_a_subject_is_measured_on_the_cpu_in_float32(model_under_test):
    for parameter in model_under_test.model.parameters():
        assert (parameter.device.type, parameter.dtype) == ("cpu", torch.float32)


def test_loss_and_accuracy_are_those_of_the_held_out_tokens(model_under_test):
    logits = model_under_test.model(model_under_test.tokens)
    assert model_under_test.loss == mean_loss(logits, model_under_test.tokens).item()
    right = logits[:, 1:].argmax(-1) == model_under_test.tokens[:, :-1]
    assert model_under_test.accuracy == pytest.approx(right.double().mean().item())


def test_the_tokens_of_the_means_are_others(model_under_test):
    assert not torch.equal(model_under_test.tokens, model_under_test.mean_tokens)


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
