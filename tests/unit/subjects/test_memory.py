from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from nopos.methods.metrics import readout
from nopos.model.data import held_out_tokens
from nopos.model.hook_points import FINAL_SCALE, hook_point
from nopos.model.transformer import NoPosTransformer
from nopos.subjects.memory import LOGITS, RememberingTransformer

NAMES = ["hook_embed", hook_point(0, "attn.pattern"), hook_point(1, "mlp.post"), FINAL_SCALE]


@pytest.fixture
def tokens(micro):
    return held_out_tokens(micro, 4)


@pytest.fixture
def plain(micro, noisy):
    return NoPosTransformer(micro, noisy(micro, 0))


@pytest.fixture
def model(micro, noisy, tokens):
    model = RememberingTransformer(micro, noisy(micro, 0))
    model.remember(tokens, held_out_tokens(micro, 3, stream=1))
    return model


@pytest.fixture
def passes(model, monkeypatch):
    """How many forward passes are made, as a list that grows."""
    made, real = [], NoPosTransformer.forward

    def counting(self, *arguments, **options):
        made.append(options)
        return real(self, *arguments, **options)

    monkeypatch.setattr(NoPosTransformer, "forward", counting)
    return made


def test_what_is_remembered_is_what_a_plain_model_gives(model, plain, tokens):
    with model.vouched_for():
        for _ in range(2):
            assert torch.equal(model.logits(tokens), plain.logits(tokens))
            read, expected = model.activations(tokens, NAMES), plain.activations(tokens, NAMES)
            assert list(read) == NAMES
            assert all(torch.equal(read[name], expected[name]) for name in NAMES)


def test_what_was_read_is_not_computed_again_and_what_was_not_is(model, tokens, passes):
    with model.vouched_for():
        model.activations(tokens, NAMES[:2])
        model.activations(tokens.clone(), NAMES[:2])
        assert len(passes) == 1
        model.activations(tokens, NAMES[1:])
        model.activations(tokens, NAMES)
        assert len(passes) == 2
        model.logits(tokens)
        model.logits(tokens)
        assert len(passes) == 3
    with model.vouched_for():
        model.logits(tokens)
    assert len(passes) == 3


def test_what_is_read_off_the_logits_is_remembered_by_what_reads_it_and_its_offset(model, plain, tokens, passes):
    with model.vouched_for():
        first, again = (model.of_logits(tokens, readout, 1) for _ in range(2))
        assert first is again
        assert torch.equal(first.logits, readout(plain.logits(tokens), tokens, 1).logits)
        assert torch.equal(model.of_logits(tokens, readout, 2).right, readout(plain.logits(tokens), tokens, 2).right)
        assert not model.was_written_into()
        first.logits.zero_()
        assert model.was_written_into()
    assert model.of_logits(tokens, readout, 1) is not first


def test_each_of_several_batches_is_remembered_for_itself(model, plain, micro, passes):
    for stream, batch in ((0, 4), (1, 3)):
        tokens = held_out_tokens(micro, batch, stream=stream)
        with model.vouched_for():
            first, again = model.logits(tokens), model.logits(tokens)
        assert torch.equal(first, again)
        assert torch.equal(first, plain.logits(tokens))
    assert len(passes) == 2 + 2  # the plain model's are counted too


@pytest.mark.parametrize("which", ["fewer", "other", "shorter"])
def test_nothing_is_remembered_of_other_tokens(model, plain, micro, tokens, passes, which):
    others = {"fewer": tokens[:2], "other": held_out_tokens(micro, 4, stream=2), "shorter": tokens[:, :5]}[which]
    with model.vouched_for():
        model.logits(tokens)
        passes.clear()
        first, again = model.logits(others), model.logits(others)
    assert len(passes) == 2
    assert torch.equal(first, again)
    assert torch.equal(first, plain.logits(others))


def test_tokens_that_change_in_place_are_other_tokens(model, plain, tokens):
    with model.vouched_for():
        before = model.logits(tokens)
        tokens[:, 3] = 1 + tokens[:, 3] % 6
        assert torch.equal(model.logits(tokens), plain.logits(tokens))
        assert not torch.equal(model.logits(tokens), before)


def test_without_a_voucher_weights_may_change(model, tokens):
    with model.vouched_for():
        before = model.logits(tokens)
    model.unembed.b_U.data[2] += 1
    after = NoPosTransformer(model.config, model.parameter_tensors()).logits(tokens)
    assert not torch.equal(after, before)
    assert torch.equal(model.logits(tokens), after)
    model.remember(tokens)
    with model.vouched_for():
        assert torch.equal(model.logits(tokens), after)


def test_a_voucher_ends_with_its_context_also_by_an_error(model, tokens, passes):
    def fail():
        with model.vouched_for():
            model.logits(tokens)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    passes.clear()
    model.logits(tokens)
    model.logits(tokens)
    assert len(passes) == 2


def test_a_hook_that_was_added_is_seen(model, plain, tokens):
    with model.vouched_for():
        before = model.logits(tokens)
        with model.hooks([("hook_embed", lambda activation, hook: 2 * activation)]):
            inside = model.logits(tokens)
            read = model.activations(tokens, ["hook_embed"])["hook_embed"]
        after = model.logits(tokens)
    assert not torch.equal(inside, before)
    assert torch.equal(read, 2 * plain.activations(tokens, ["hook_embed"])["hook_embed"])
    assert torch.equal(after, before)


def test_standing_edits_that_were_there_when_it_began_are_part_of_what_is_remembered(model, plain, tokens, passes):
    for each in (model, plain):
        each.add_perma_hook(hook_point(0, "attn_out"), lambda activation, hook: torch.zeros_like(activation))
    model.remember(tokens)
    expected = plain.logits(tokens)
    passes.clear()
    with model.vouched_for():
        assert torch.equal(model.logits(tokens), expected)
        assert torch.equal(model.logits(tokens), expected)
    assert len(passes) == 1


def test_what_is_read_off_the_weights_is_computed_once_for_each_analysis_while_weights_are_vouched_for(model):
    asked = []

    def bias(of_model):
        asked.append("bias")
        return of_model.unembed.b_U.detach().clone()

    def number(of_model):
        asked.append("number")
        return 2

    with model.vouched_for():
        assert torch.equal(model.of_weights(bias), model.unembed.b_U)
        assert (model.of_weights(number), model.of_weights(number)) == (2, 2)
        assert torch.equal(model.of_weights(bias), model.unembed.b_U)
        assert asked == ["bias", "number"]
        with model.hooks([("hook_embed", lambda activation, hook: 2 * activation)]):
            model.of_weights(bias)
    assert asked == ["bias", "number", "bias"]
    model.unembed.b_U.data[2] += 1
    assert torch.equal(model.of_weights(bias), model.unembed.b_U)


def test_a_copy_remembers_nothing(model, tokens):
    with model.vouched_for():
        before = model.logits(tokens)
        copy = deepcopy(model)
        copy.unembed.b_U.data[2] += 1
        assert torch.equal(copy.logits(tokens), NoPosTransformer(copy.config, copy.parameter_tensors()).logits(tokens))
        assert not torch.equal(copy.logits(tokens), before)
        assert copy.double().logits(tokens).dtype == torch.float64
        assert torch.equal(model.logits(tokens), before)


def test_after_all_claims_what_is_kept_is_what_a_fresh_model_gives(evaluated):
    """No analysis writes into what it reads, nor leaves an edit behind."""
    subject = evaluated.subject
    kept_of_each = [model._kept for model in (subject.model, subject.folded)]
    assert sum(len(kept) for batches in kept_of_each for _, kept in batches) > 20
    for model, batches in zip((subject.model, subject.folded), kept_of_each, strict=True):
        fresh = NoPosTransformer(model.config, model.parameter_tensors())
        for tokens, kept in batches:
            expected = {LOGITS: fresh.logits(tokens), **fresh.activations(tokens, list(fresh.hook_dict))}
            of_logits = {key: one.value for key, one in kept.items() if isinstance(key, tuple)}
            changed = [
                name
                for name, one in kept.items()
                if name not in of_logits and not torch.equal(one.value, expected[name])
            ]
            assert changed == []
            for (analysis, offset), found in of_logits.items():
                again = analysis(expected[LOGITS], tokens, offset)
                assert torch.equal(found.logits, again.logits)
                assert torch.equal(found.largest, again.largest)
        for analysis, kept in model._of_weights.items():
            expected, read = (each if isinstance(each, tuple) else (each,) for each in (analysis(fresh), kept.value))
            assert all(torch.equal(one, other) for one, other in zip(expected, read, strict=True)), analysis
    assert len(subject.folded._of_weights) == 3
