"""What a run of part of the model gives is what TransformerLens' own run of all of it gives, to the last bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nopos.methods.interventions import activation_with, as_hook, logits_with
from nopos.model.data import held_out_tokens
from nopos.model.hook_points import hook_point
from nopos.model.transformer import NoPosTransformer
from nopos.subjects.memory import RememberingTransformer


def bend(activation):
    """An edit that depends on the position and the entry, and keeps masked scores masked."""
    entries = torch.linspace(0.5, 1.5, activation[0].numel(), dtype=activation.dtype).reshape(activation[0].shape)
    return torch.where(activation.isfinite(), activation * entries + 0.1, activation)


@torch.no_grad()
def whole_run(model, tokens, edits):
    """Logits, and what passes each hook point, of a full forward pass with a hook for each edit."""
    passed = {}

    def keep(activation, hook):
        passed[hook.name] = activation

    hooks = [(name, as_hook(edit)) for name, edit in edits.items()] + [(name, keep) for name in model.hook_dict]
    return model.run_with_hooks(tokens, fwd_hooks=hooks), passed


STANDING = [
    (),
    (hook_point(0, "resid_post"),),
    (hook_point(2, "resid_post"),),
    ("hook_embed", hook_point(1, "attn.pattern"), hook_point(1, "resid_pre"), "ln_final.hook_normalized"),
]


@pytest.fixture(params=STANDING, ids=["no standing edits", "resid_post", "the last resid_post", "in every part"])
def deep(request, micro, noisy):
    """A model of three layers, which may have standing edits."""
    model = NoPosTransformer(replace(micro, n_layers=3), noisy(replace(micro, n_layers=3), 0))
    for name in request.param:
        model.add_perma_hook(name, as_hook(lambda activation: 0.9 * activation))
    return model


@pytest.fixture
def remembering(deep):
    """The same model, remembering."""
    model = RememberingTransformer(deep.config, deep.parameter_tensors())
    for name, point in deep.hook_dict.items():
        for _ in point.fwd_hooks:
            model.add_perma_hook(name, as_hook(lambda activation: 0.9 * activation))
    return model


def test_an_edit_at_any_hook_point_gives_what_a_whole_run_gives(deep, micro):
    tokens, read = held_out_tokens(micro, 3), hook_point(1, "mlp.post")
    for name in deep.hook_dict:
        logits, passed = whole_run(deep, tokens, {name: bend})
        assert torch.equal(logits_with(deep, tokens, {name: bend}), logits), name
        assert torch.equal(activation_with(deep, tokens, read, {name: bend}), passed[read]), name


@pytest.mark.parametrize("edited", [None, hook_point(1, "attn.q"), hook_point(1, "resid_post")])
def test_any_hook_point_reads_as_in_a_whole_run(deep, micro, edited):
    tokens, edits = held_out_tokens(micro, 3), {} if edited is None else {edited: bend}
    logits, passed = whole_run(deep, tokens, edits)
    assert torch.equal(logits_with(deep, tokens, edits), logits)
    for read in deep.hook_dict:
        assert torch.equal(activation_with(deep, tokens, read, edits), passed[read]), read


SEVERAL = [
    ("hook_embed", hook_point(2, "mlp.post")),
    (hook_point(1, "attn.q"), hook_point(1, "attn.k"), hook_point(2, "attn_out")),
    (hook_point(0, "resid_post"), hook_point(1, "resid_pre"), hook_point(1, "resid_post")),
    (hook_point(2, "resid_post"), "ln_final.hook_scale", "ln_final.hook_normalized"),
    (hook_point(1, "resid_mid"), hook_point(1, "resid_post"), hook_point(2, "resid_pre"), "ln_final.hook_normalized"),
]


@pytest.mark.parametrize("names", SEVERAL, ids=" and ".join)
def test_several_edits_in_several_layers_give_what_a_whole_run_gives(deep, remembering, micro, names):
    """Whatever the order in which they are named, and of a model that remembers too."""
    tokens = held_out_tokens(micro, 3)
    remembering.remember(tokens)
    logits, passed = whole_run(deep, tokens, dict.fromkeys(names, bend))
    for order in (names, names[::-1]):
        edits = dict.fromkeys(order, bend)
        assert torch.equal(logits_with(deep, tokens, edits), logits)
        with remembering.vouched_for():
            assert torch.equal(logits_with(remembering, tokens, edits), logits)
            assert torch.equal(logits_with(remembering, tokens, edits), logits)
            for read in (*names, hook_point(1, "attn.pattern"), hook_point(2, "resid_mid"), "ln_final.hook_scale"):
                assert torch.equal(activation_with(remembering, tokens, read, edits), passed[read]), read


def test_an_edit_in_place_changes_nothing_that_is_remembered(deep, remembering, micro):
    tokens = held_out_tokens(micro, 3)
    remembering.remember(tokens)
    for name in (hook_point(1, "resid_pre"), hook_point(0, "resid_post"), hook_point(2, "resid_post")):
        with remembering.vouched_for():
            once, again = (logits_with(remembering, tokens, {name: lambda stream: stream.mul_(2)}) for _ in range(2))
            assert torch.equal(once, again)
            assert torch.equal(remembering.logits(tokens), deep.logits(tokens))


def test_a_run_begins_where_the_first_edit_is_and_ends_where_it_is_read(micro, noisy, monkeypatch):
    model = NoPosTransformer(replace(micro, n_layers=3), noisy(replace(micro, n_layers=3), 0))
    tokens, parts, real = held_out_tokens(micro, 2), [], NoPosTransformer.forward

    def recording(self, given, *, start_at_layer=None, stop_at_layer=None):
        parts.append((start_at_layer, stop_at_layer))
        return real(self, given, start_at_layer=start_at_layer, stop_at_layer=stop_at_layer)

    monkeypatch.setattr(NoPosTransformer, "forward", recording)
    first, second = hook_point(1, "attn.k"), hook_point(1, "resid_post")
    activation_with(model, tokens, hook_point(1, "mlp.pre"), {first: bend})
    logits_with(model, tokens, {second: bend})
    assert parts == [(None, 1), (1, 2), (None, 2), (2, None)]
