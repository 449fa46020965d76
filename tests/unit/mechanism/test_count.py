from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nopos.errors import AnalysisError
from nopos.mechanism.count import (
    LARGEST,
    dilution,
    dilution_of_queries,
    effect_of_averaging_values,
    effect_of_the_law,
    error_of_the_law,
    pattern_of_counts,
    true_counts,
)
from nopos.methods.circuits import qk_circuit
from nopos.methods.metrics import logits_changed, readout
from nopos.model.data import held_out_tokens
from nopos.model.transformer import NoPosTransformer
from tests.support.micro import folded_of


@pytest.fixture
def tokens(law_model):
    return held_out_tokens(law_model.config, 8)


def test_a_dilution_is_the_weight_of_BOS_over_the_mean_weight_of_another_token(micro, noisy):
    folded = folded_of(NoPosTransformer(micro, noisy(micro, 0)))
    weights = qk_circuit(folded, layer=0).exp()
    a = dilution(folded)
    assert a.shape == (micro.n_heads, micro.d_vocab)
    for head in range(micro.n_heads):
        for token in range(micro.d_vocab):
            expected = weights[head, token, 0] / weights[head, token, 1:].mean()
            assert a[head, token].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("factor", [-1e4, 1e4])
def test_the_law_is_finite_where_BOS_gets_nothing_or_all(law_model, tokens, factor):
    """As in a model that looks one position back by its positions: the error is large, and a number."""
    parameters = law_model.parameter_tensors()
    parameters["blocks.0.attn.W_Q"] *= factor
    model = NoPosTransformer(law_model.config, parameters)
    a = dilution(folded_of(model))
    assert a.max() == LARGEST or a.min() == 1 / LARGEST
    assert math.isfinite(error_of_the_law(model, tokens, folded=folded_of(model)))


def test_each_query_has_the_dilution_of_its_token(micro, noisy):
    folded = folded_of(NoPosTransformer(micro, noisy(micro, 0)))
    tokens = held_out_tokens(micro, 3)
    of_queries = dilution_of_queries(folded, tokens)
    assert of_queries.dtype == torch.float32
    for head in range(micro.n_heads):
        torch.testing.assert_close(of_queries[:, head].double(), dilution(folded)[head][tokens].double())


def test_the_law_by_hand():
    a = torch.tensor([[[9.0, 2.0, 2.0, 6.0]]])
    expected = [[1, 0, 0, 0], [2 / 3, 1 / 3, 0, 0], [1 / 2, 1 / 4, 1 / 4, 0], [2 / 3, 1 / 9, 1 / 9, 1 / 9]]
    counts = true_counts(torch.zeros(1, 4, dtype=torch.long))
    torch.testing.assert_close(pattern_of_counts(a, counts)[0, 0], torch.tensor(expected))


def test_counts_by_hand_change_what_BOS_gets_and_leave_the_others_alike():
    a = torch.tensor([[[2.0, 2.0, 2.0]]])
    expected = [[1, 0, 0], [2 / 8, 6 / 8, 0], [2 / 3, 1 / 6, 1 / 6]]
    torch.testing.assert_close(pattern_of_counts(a, torch.tensor([5.0, 6.0, 1.0]))[0, 0], torch.tensor(expected))


@given(
    a=st.lists(st.floats(0.01, 100), min_size=6, max_size=6), counts=st.lists(st.floats(0, 60), min_size=6, max_size=6)
)
def test_rows_of_the_law_are_distributions_over_what_a_query_may_see(a, counts):
    pattern = pattern_of_counts(torch.tensor(a)[None, None], torch.tensor(counts))
    torch.testing.assert_close(pattern.sum(-1), torch.ones(1, 1, 6))
    assert (pattern.triu(1) == 0).all()
    assert (pattern >= 0).all()


def test_the_law_is_exact_where_all_other_keys_are_alike(law_model, tokens):
    folded = folded_of(law_model)
    a = dilution(folded)[0, 1:]
    assert (a.max() / a.min()).item() > 1.1
    assert error_of_the_law(law_model, tokens, folded=folded) < 1e-5
    assert effect_of_the_law(law_model, tokens, folded=folded).logits_changed == pytest.approx(0, abs=1e-6)


def test_one_dilution_for_all_is_the_median_tokens(law_model, tokens):
    """What it changes is what the law with that number changes, and it changes something."""
    folded = folded_of(law_model)
    median = dilution(folded)[0, 1:].median().float().expand(8, 1, 26)
    pattern = pattern_of_counts(median, true_counts(tokens))
    edited = law_model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", lambda t, hook: pattern)])
    expected = logits_changed(readout(law_model(tokens), tokens), readout(edited, tokens))
    effect = effect_of_the_law(law_model, tokens, folded=folded, one_for_all=True)
    assert effect.logits_changed == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-4


def test_the_error_of_the_law_is_that_of_the_weight_on_BOS(micro, noisy):
    model = NoPosTransformer(micro, noisy(micro, 0))
    tokens, folded = held_out_tokens(micro, 4), folded_of(model)
    _, cache = model.run_with_cache(tokens)
    a, squares = dilution(folded), []
    for batch, row in enumerate(tokens):
        for head in range(micro.n_heads):
            for query in range(1, micro.n_ctx):
                predicted = a[head, row[query]] / (a[head, row[query]] + query)
                squares.append((cache["blocks.0.attn.hook_pattern"][batch, head, query, 0] / predicted - 1) ** 2)
    expected = torch.stack(squares).mean().sqrt().item()
    assert expected > 0.1
    assert error_of_the_law(model, tokens, folded=folded) == pytest.approx(expected, rel=1e-4)


def test_values_that_are_alike_can_be_averaged_and_that_of_BOS_cannot(law_model, tokens):
    other_tokens = held_out_tokens(law_model.config, 8, stream=1)
    others, bos = (
        effect_of_averaging_values(law_model, tokens, other_tokens=other_tokens, keys=keys)
        for keys in ("others", "BOS")
    )
    assert others.logits_changed == pytest.approx(0, abs=1e-6)
    assert bos.logits_changed > 1e-4


@pytest.mark.parametrize(("keys", "replaced"), [("BOS", slice(0, 1)), ("others", slice(1, None))])
def test_an_averaged_value_is_the_mean_of_the_other_tokens(micro, noisy, keys, replaced):
    model = NoPosTransformer(micro, noisy(micro, 0))
    tokens, other_tokens = held_out_tokens(micro, 4), held_out_tokens(micro, 4, stream=1)
    mean = model.run_with_cache(other_tokens)[1]["blocks.0.attn.hook_v"][:, 1:].mean(dim=(0, 1))

    def average(v, hook):
        v = v.clone()
        v[:, replaced] = mean
        return v

    edited = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_v", average)])
    expected = logits_changed(readout(model(tokens), tokens), readout(edited, tokens))
    effect = effect_of_averaging_values(model, tokens, other_tokens=other_tokens, keys=keys)
    assert effect.logits_changed == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-4


def test_the_parts_of_the_law_by_hand(micro, noisy):
    """The law's weight on BOS with the model's proportions among the others, and the other way round."""
    model = NoPosTransformer(micro, noisy(micro, 0))
    tokens, folded = held_out_tokens(micro, 4), folded_of(model)
    own = model.run_with_cache(tokens)[1]["blocks.0.attn.hook_pattern"]
    predicted = pattern_of_counts(dilution_of_queries(folded, tokens), true_counts(tokens))
    for part, on_bos, on_others in (("BOS", predicted, own), ("others", own, predicted)):
        joined = on_others.clone()
        joined[..., 0] = on_bos[..., 0]
        joined[..., 1:, 1:] *= ((1 - on_bos[..., 0]) / (1 - on_others[..., 0]))[..., 1:, None]
        torch.testing.assert_close(joined.sum(-1), torch.ones_like(joined[..., 0]))
        edited = model.run_with_hooks(
            tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", lambda t, hook, new=joined: new)]
        )
        expected = logits_changed(readout(model(tokens), tokens), readout(edited, tokens))
        effect = effect_of_the_law(model, tokens, folded=folded, part=part)
        assert effect.logits_changed == pytest.approx(expected, rel=1e-3)
        assert expected > 1e-5


@pytest.mark.usefixtures("unchecked")
def test_parts_and_keys_that_there_are_not_are_one_clear_line(law_model, tokens):
    with pytest.raises(AnalysisError, match="part is 'bos'; it must be one of all, BOS, others"):
        effect_of_the_law(law_model, tokens, folded=folded_of(law_model), part="bos")
    with pytest.raises(AnalysisError, match="keys is 'all'; it must be one of BOS, others"):
        effect_of_averaging_values(law_model, tokens, other_tokens=tokens, keys="all")


def test_dilutions_are_read_off_a_folded_model(law_model):
    with pytest.raises(AnalysisError, match="fold it first"):
        dilution(law_model)
