from __future__ import annotations

import pytest
import torch

from nopos.mechanism.count import PATTERN, dilution_of_queries, pattern_of_counts, true_counts
from nopos.mechanism.kernel import scores_from_weights
from nopos.mechanism.program import SCORES, AffineMap, affine_map_of_mlp, effect_of_the_program
from nopos.methods.attention import effect_of_keeping_only
from nopos.methods.metrics import logits_changed, readout
from nopos.model.data import held_out_tokens
from nopos.model.transformer import NoPosTransformer
from nopos.subjects.controls import reference
from tests.support.micro import folded_of


@pytest.fixture
def tokens(law_model):
    return held_out_tokens(law_model.config, 40)


@pytest.fixture
def other_tokens(law_model):
    return held_out_tokens(law_model.config, 40, stream=1)


@pytest.fixture
def any_model(law_model, noisy):
    """A model that no part of the account is exact of."""
    config = law_model.config
    return NoPosTransformer(config, noisy(config, 1) | {"pos_embed.W_pos": torch.zeros(config.n_ctx, config.d_model)})


@pytest.fixture
def all_active(law_model):
    """All neurons of MLP 1 are always active, so that it is an affine map."""
    parameters = law_model.parameter_tensors()
    parameters["blocks.1.mlp.b_in"] = parameters["blocks.1.mlp.b_in"] + 20
    return NoPosTransformer(law_model.config, parameters)


@pytest.fixture
def as_the_account_has_it(all_active):
    """A model of which every part of the account is exact, and whose answers depend on all of them.

    The count is written to the first half of d_model and the token stands in the second, so that LayerNorm's scale
    knows no token. Layer 0's queries and layer 1's queries and keys read the first half alone.
    """
    parameters = {name: value.clone() for name, value in all_active.parameter_tensors().items()}
    half = all_active.config.d_model // 2
    for name in ("attn.W_O", "attn.b_O"):
        parameters[f"blocks.0.{name}"][..., half:] = 0
    for name in ("blocks.0.attn.W_Q", "blocks.1.attn.W_Q", "blocks.1.attn.W_K"):
        parameters[name][:, half:] = 0
    for name in ("W_out", "b_out"):
        parameters[f"blocks.0.mlp.{name}"].zero_()
    for name in ("W_Q", "b_Q"):
        parameters[f"blocks.0.attn.{name}"] *= -1  # so that BOS weighs as much as some tens of others
        parameters[f"blocks.1.attn.{name}"] *= 5
    parameters["blocks.1.mlp.b_out"] -= 20 * parameters["blocks.1.mlp.W_out"].sum(dim=0)  # what being active adds
    return NoPosTransformer(all_active.config, parameters)


def test_an_affine_map_by_hand():
    double_and_swap = AffineMap(
        weights=torch.tensor([[0.0, 2.0], [2.0, 0.0], [0.0, 0.0]], dtype=torch.float64),
        bias=torch.tensor([1.0, -1.0], dtype=torch.float64),
    )
    read = torch.tensor([[[3.0, 5.0, 9.0]], [[0.0, 0.0, 9.0]]])
    written = double_and_swap(read)
    assert written.tolist() == [[[11.0, 5.0]], [[1.0, -1.0]]]
    assert written.dtype == torch.float32
    assert double_and_swap(read.double()).dtype == torch.float64


def test_an_MLP_whose_neurons_are_all_active_is_its_affine_map(all_active, tokens, other_tokens):
    fitted, mlp = affine_map_of_mlp(all_active, other_tokens), all_active.block(1).mlp
    read = all_active.run_with_cache(tokens)[1]["blocks.1.ln2.hook_normalized"]
    torch.testing.assert_close(fitted(read), mlp(read), atol=1e-4, rtol=1e-4)
    # what it reads sums to zero after LayerNorm's weight is undone, so one direction of the matrix is free
    effect = effect_of_the_program(
        all_active, tokens, other_tokens=other_tokens, folded=folded_of(all_active), patterns=False
    )
    assert effect.logits_changed < 1e-4


def test_the_affine_map_is_that_of_least_squares(law_model, other_tokens):
    """What it misses has a mean of zero and nothing to do with any direction of what the MLP reads."""
    fitted, mlp = affine_map_of_mlp(law_model, other_tokens), law_model.block(1).mlp
    read = law_model.run_with_cache(other_tokens)[1]["blocks.1.ln2.hook_normalized"]
    missed, read = ((each.flatten(0, 1)).double() for each in (mlp(read) - fitted(read), read))
    assert missed.abs().max() > 1e-2
    torch.testing.assert_close(missed.mean(dim=0), torch.zeros(8).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(read.T @ missed / len(read), torch.zeros(8, 8).double(), atol=1e-4, rtol=0)


def test_where_the_account_is_exact_nothing_changes_with_all_of_it_put_in(as_the_account_has_it, tokens, other_tokens):
    """By law, kernel and affine map at once; another pattern in layer 1 would change the answers."""
    model, options = as_the_account_has_it, {"other_tokens": other_tokens, "folded": folded_of(as_the_account_has_it)}
    effect = effect_of_the_program(model, tokens, **options)
    assert effect.logits_changed == pytest.approx(0, abs=1e-5)
    assert effect.answers_changed == 0
    for layer in (0, 1):
        assert effect_of_keeping_only(model, tokens, layer=layer, offset=0).logits_changed > 0.03


def test_an_MLP_that_is_none_is_missed_by_its_affine_map(law_model, tokens, other_tokens):
    effect = effect_of_the_program(
        law_model, tokens, other_tokens=other_tokens, folded=folded_of(law_model), patterns=False
    )
    assert effect.logits_changed > 5e-4


def test_law_and_kernel_are_put_in_together(any_model, tokens, other_tokens):
    folded = folded_of(any_model)
    by_law = pattern_of_counts(dilution_of_queries(folded, tokens), true_counts(tokens))
    scores = scores_from_weights(folded, pos=26).float()
    hooks = [(PATTERN, lambda value, hook: by_law), (SCORES, lambda value, hook: scores.expand_as(value))]
    edited = any_model.run_with_hooks(tokens, fwd_hooks=hooks)
    expected = logits_changed(readout(any_model(tokens), tokens), readout(edited, tokens))
    effect = effect_of_the_program(any_model, tokens, other_tokens=other_tokens, folded=folded, decoding=False)
    assert effect.logits_changed == pytest.approx(expected, rel=1e-3)
    assert expected > 0.1


def test_nothing_put_in_changes_nothing(law_model, tokens, other_tokens):
    options = {"other_tokens": other_tokens, "folded": folded_of(law_model)}
    effect = effect_of_the_program(law_model, tokens, **options, patterns=False, decoding=False)
    assert (effect.answers_changed, effect.logits_changed) == (0, 0)


def test_the_affine_map_reads_what_the_patterns_leave(any_model, tokens, other_tokens):
    """MLP 1 is replaced by what its map makes of what it reads then."""
    folded = folded_of(any_model)
    fitted = affine_map_of_mlp(any_model, other_tokens)
    by_law = pattern_of_counts(dilution_of_queries(folded, tokens), true_counts(tokens))
    scores = scores_from_weights(folded, pos=26).float()
    read = {}

    def keep(value, hook):
        read["normalized"] = value

    hooks = [
        (PATTERN, lambda value, hook: by_law),
        (SCORES, lambda value, hook: scores.expand_as(value)),
        ("blocks.1.ln2.hook_normalized", keep),
        ("blocks.1.hook_mlp_out", lambda value, hook: fitted(read["normalized"])),
    ]
    edited = any_model.run_with_hooks(tokens, fwd_hooks=hooks)
    expected = logits_changed(readout(any_model(tokens), tokens), readout(edited, tokens))
    effect = effect_of_the_program(any_model, tokens, other_tokens=other_tokens, folded=folded)
    assert effect.logits_changed == pytest.approx(expected, rel=1e-3)
    without_patterns = any_model.run_with_hooks(tokens, fwd_hooks=hooks[2:])
    expected = logits_changed(readout(any_model(tokens), tokens), readout(without_patterns, tokens))
    alone = effect_of_the_program(any_model, tokens, other_tokens=other_tokens, folded=folded, patterns=False)
    assert alone.logits_changed == pytest.approx(expected, rel=1e-3)
    assert expected > 0.01


def test_the_affine_map_is_fitted_on_the_other_tokens(any_model, tokens, other_tokens):
    options = {"folded": folded_of(any_model), "patterns": False}
    few, many, same = (
        effect_of_the_program(any_model, tokens, other_tokens=others, **options).logits_changed
        for others in (other_tokens[:3], other_tokens, tokens)
    )
    assert same < 0.95 * many < many < 0.95 * few


def test_of_the_reference_model_nearly_every_answer_stays():
    good = reference()
    effect = good.run(effect_of_the_program)
    assert effect.answers_changed < 0.02
