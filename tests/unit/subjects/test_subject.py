from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nopos.errors import ClaimError
from nopos.mechanism.count import dilution, median_dilution
from nopos.methods.activations import activation
from nopos.methods.attention import effect_of_keeping_only
from nopos.methods.interventions import logits_with
from nopos.methods.neurons import mlp_activations
from nopos.model.data import held_out_tokens, mean_loss
from nopos.model.hook_points import hook_point
from nopos.subjects.controls import NO_BOS, RELAY, TWO_BACK, UNTRAINED, reference
from nopos.subjects.subject import SOLVED, Subject

ATTN_OUT = hook_point(1, "attn_out")
CHANGED = (
    r"reference: a test changed its weights \(unembed.b_U\) and tokens and hooks \(model.hook_embed._forward_hooks"
)


@pytest.fixture(scope="module")
def model_under_test():
    return reference()


def loss_on(model, tokens):
    return mean_loss(model.logits(tokens), tokens).item()


def test_a_subject_is_measured_on_the_cpu_in_float32(model_under_test):
    for parameter in model_under_test.model.parameters():
        assert (parameter.device.type, parameter.dtype) == ("cpu", torch.float32)


def test_loss_and_accuracy_are_those_of_the_held_out_tokens(model_under_test):
    tokens = held_out_tokens(model_under_test.config, 256)
    logits = model_under_test.model(tokens)
    assert model_under_test.loss == model_under_test.loss_at(1) == mean_loss(logits, tokens).item()
    right = logits[:, 1:].argmax(-1) == tokens[:, :-1]
    assert model_under_test.accuracy == model_under_test.accuracy_at(1) == pytest.approx(right.double().mean().item())


def with_unembedding(subject, factor):
    """The subject with all logits times a factor."""
    own = subject.checkpoint
    scaled = {name: factor * own.parameters[name] for name in ("unembed.W_U", "unembed.b_U")}
    return Subject("scaled", replace(own, parameters=own.parameters | scaled))


def test_a_subject_solves_its_task_by_its_answers_however_unsure_it_is_of_them(model_under_test):
    unsure, backwards = (with_unembedding(model_under_test, factor) for factor in (0.1, -0.1))
    assert unsure.loss > 1
    assert unsure.accuracy == model_under_test.accuracy > SOLVED
    assert unsure.solves_the_task()
    assert backwards.accuracy < 0.01
    assert not backwards.solves_the_task()


def test_analyses_are_made_on_the_first_of_them_and_means_are_of_others(model_under_test):
    assert torch.equal(model_under_test.tokens, held_out_tokens(model_under_test.config, 256)[:64])
    assert model_under_test.other_tokens.shape == model_under_test.tokens.shape
    own = {tuple(row) for row in held_out_tokens(model_under_test.config, 256).tolist()}
    assert not own & {tuple(row) for row in model_under_test.other_tokens.tolist()}


@pytest.mark.parametrize(
    "name", ["name", "config", "task", "checkpoint", "model", "folded", "tokens", "other_tokens", "loss", "accuracy"]
)
def test_nothing_of_a_subject_can_be_replaced(model_under_test, name):
    with pytest.raises(AttributeError):
        setattr(model_under_test, name, getattr(model_under_test, name))


def test_nothing_can_be_put_down_on_a_subject(model_under_test):
    with pytest.raises(AttributeError):
        model_under_test.remembered = 1


def test_a_subject_with_other_sequences_gives_other_results(model_under_test):
    """Other tokens once gave the results of those before them."""
    few = Subject("few", model_under_test.checkpoint, sequences=8)
    assert torch.equal(few.tokens, model_under_test.tokens[:8])
    assert len(few.other_tokens) == 8
    assert few.run(loss_on) == loss_on(few.model, few.tokens)
    assert few.run(loss_on) != model_under_test.run(loss_on)
    assert few.loss == model_under_test.loss  # which is of as many sequences for every subject


def test_an_analysis_is_handed_what_it_asks_for_by_name(model_under_test):
    def all_of_it(model, folded, tokens, other_tokens, loss_tokens, *, target_offset):
        return id(model), id(folded), id(tokens), id(other_tokens), loss_tokens, target_offset

    model, folded, tokens, other_tokens, loss_tokens, target_offset = model_under_test.run(all_of_it)
    assert model == id(model_under_test.model)
    assert folded == id(model_under_test.folded)
    assert tokens == id(model_under_test.tokens)
    assert other_tokens == id(model_under_test.other_tokens)
    assert torch.equal(loss_tokens, held_out_tokens(model_under_test.config, 256))
    assert target_offset == 1
    assert TWO_BACK.model_for(reference()).run(lambda target_offset: target_offset) == 2
    assert model_under_test.run(lambda: "nothing") == "nothing"


def test_an_option_comes_before_what_the_subject_has_of_its_name(model_under_test):
    def given(folded, target_offset):
        return id(folded), target_offset

    own, other = model_under_test.folded, model_under_test.model
    assert model_under_test.run(given) == (id(own), 1)
    assert model_under_test.run(given, folded=other, target_offset=3) == (id(other), 3)


def test_a_standing_edit_is_part_of_the_subject_and_rebuilt_with_it():
    good = reference().checkpoint
    subject = Subject("silenced", good, interventions={ATTN_OUT: torch.zeros_like})
    loss = subject.loss
    assert loss > 5
    silenced = logits_with(reference().model, subject.tokens, {ATTN_OUT: torch.zeros_like})
    assert subject.run(loss_on) == pytest.approx(mean_loss(silenced, subject.tokens).item())
    with pytest.raises(ClaimError, match="changed its hooks"), subject.proven_unchanged():
        subject.model.reset_hooks(including_permanent=True)
    assert subject.loss == loss
    assert subject.model.hook_dict[ATTN_OUT].has_hooks()
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


def test_what_is_done_to_a_result_is_not_seen_by_the_next(model_under_test):
    name = hook_point(0, "attn_out")
    model_under_test.run(activation, hook_point=name).zero_()
    assert model_under_test.run(activation, hook_point=name).abs().max() > 0
    effect = model_under_test.run(effect_of_keeping_only, layer=1, offset=0)
    effect.changed_by_position.zero_()
    assert model_under_test.run(effect_of_keeping_only, layer=1, offset=0).answers_changed > 0


def test_a_result_for_given_tokens_is_of_what_they_are_now(model_under_test):
    tokens = model_under_test.tokens[:4].clone()
    first = model_under_test.run(loss_on, tokens=tokens)
    tokens[:, 1:] = 7
    assert model_under_test.run(loss_on, tokens=tokens) == loss_on(model_under_test.model, tokens) != first


def test_options_that_cannot_be_remembered_are_one_clear_line(model_under_test):
    with pytest.raises(ClaimError, match=r"options of activation cannot be remembered .*; give tuples"):
        model_under_test.run(activation, hook_point=["hook_embed"])


def test_a_result_on_changed_weights_is_not_remembered():
    subject = reference()
    before = subject.run(loss_on)
    bias = subject.model.unembed.b_U.data
    kept = bias.clone()
    bias[3] += 9
    changed = subject.run(loss_on)
    assert changed == loss_on(subject.model, subject.tokens) != before
    bias[4] += 9
    assert subject.run(loss_on) not in (before, changed)
    bias.copy_(kept)
    assert subject.run(loss_on) == before


def test_each_subject_is_judged_on_its_own_task(model_under_test):
    controls = (RELAY, TWO_BACK, UNTRAINED)
    solves = {control.name: control.model_for(model_under_test).solves_the_task() for control in controls}
    assert solves == {"relay": True, "two back": True, "untrained": False}
    assert model_under_test.solves_the_task()
    two_back = TWO_BACK.model_for(reference())
    assert (two_back.task.target_offset, two_back.loss) == (2, two_back.loss_at(2))
    assert two_back.accuracy == two_back.accuracy_at(2) > 0.99
    assert two_back.loss_at(1) > 5
    assert two_back.accuracy_at(1) < 0.05


def test_a_model_without_BOS_is_read_on_tokens_without_BOS(model_under_test):
    subject = NO_BOS.model_for(reference())
    for tokens in (subject.tokens, subject.other_tokens, subject.run(lambda loss_tokens: loss_tokens)):
        assert (tokens > 0).all()
    assert (model_under_test.tokens[:, 0] == 0).all()


def test_a_change_is_found_named_and_mended():
    subject = reference()
    loss = subject.loss

    def spoil():
        with subject.proven_unchanged():
            subject.model.unembed.b_U.data.add_(1)
            subject.model.add_hook("hook_embed", lambda activation, hook: activation * 0)
            subject.tokens[0, 5] = 9

    with pytest.raises(ClaimError, match=CHANGED):
        spoil()
    assert subject.loss == loss
    with subject.proven_unchanged():
        subject.model.run_with_hooks(subject.tokens[:1], fwd_hooks=[("hook_embed", lambda activation, hook: None)])


def test_a_hook_that_replaces_another_is_found():
    subject = Subject("silenced", reference().checkpoint, interventions={ATTN_OUT: torch.zeros_like})

    def replace_the_hook():
        with subject.proven_unchanged():
            subject.model.reset_hooks(including_permanent=True)
            subject.model.add_perma_hook(ATTN_OUT, lambda activation, hook: activation + 1)

    with pytest.raises(ClaimError, match="changed its hooks"):
        replace_the_hook()


@pytest.mark.parametrize("which", ["model", "folded"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: setattr(model.blocks[0].attn, "scale", 1.0), "changed its attributes"),
        (lambda model: setattr(model.blocks[1].mlp, "forward", torch.zeros_like), "changed its attributes"),
        (lambda model: setattr(model, "noted", torch.ones(2)), "changed its attributes"),
        (lambda model: model.blocks[1].register_module("ln1", torch.nn.Identity()), "changed its attributes"),
        (lambda model: model.blocks[0].attn.register_forward_hook(lambda *_: None), "changed its hooks"),
    ],
    ids=["a number", "a forward pass", "one more", "a module", "a hook on a module that is no hook point"],
)
def test_whatever_is_set_on_a_module_is_found_and_mended(which, spoil, message):
    subject = UNTRAINED.model_for(reference())
    loss = subject.loss
    with pytest.raises(ClaimError, match=message), subject.proven_unchanged():
        spoil(getattr(subject, which))
    with subject.proven_unchanged():
        assert subject.loss == loss


@pytest.mark.parametrize(
    "write",
    [
        lambda model, tokens: model.logits(tokens).mul_(0),
        lambda model, tokens: model.activations(tokens, [ATTN_OUT])[ATTN_OUT].add_(1),
        lambda folded: folded.of_weights(dilution).zero_(),
    ],
    ids=["logits", "an activation", "what is read off the weights"],
)
def test_an_analysis_that_writes_into_what_it_reads_is_found_and_the_next_reads_what_is_right(write):
    subject = UNTRAINED.model_for(reference())
    expected = subject.run(loss_on), subject.run(activation, hook_point=ATTN_OUT), subject.run(median_dilution)
    with pytest.raises(ClaimError, match="changed its activations"), subject.proven_unchanged():
        subject.run(write)
    with subject.proven_unchanged():
        assert subject.run(loss_on) == expected[0]
        assert torch.equal(subject.run(activation, hook_point=ATTN_OUT), expected[1])
        assert torch.equal(subject.run(median_dilution), expected[2])


def test_a_hook_that_was_taken_away_is_put_back_where_its_handle_takes_it_away_again():
    subject = Subject("silenced", reference().checkpoint, interventions={ATTN_OUT: torch.zeros_like})
    point = subject.model.hook_dict[ATTN_OUT]

    def take_away():
        with subject.proven_unchanged():
            subject.model.reset_hooks(including_permanent=True)
            assert (point.has_hooks(), len(point._forward_hooks)) == (False, 0)

    for _ in range(2):
        with pytest.raises(ClaimError, match="changed its hooks"):
            take_away()
        assert (point.has_hooks(), len(point._forward_hooks)) == (True, 1)


def test_another_dtype_is_a_change():
    subject = UNTRAINED.model_for(reference())
    with pytest.raises(ClaimError, match="changed its weights"), subject.proven_unchanged():
        subject.model.double()


def test_a_failure_inside_is_not_hidden_by_the_check():
    subject = UNTRAINED.model_for(reference())

    def spoil_and_fail():
        with subject.proven_unchanged():
            subject.model.unembed.b_U.data.add_(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spoil_and_fail()
    assert subject.model.unembed.b_U.abs().max() == 0
