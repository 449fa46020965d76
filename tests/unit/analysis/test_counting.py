from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fixtures.micro import twin_of
from nopos.analysis.circuits import qk_circuit
from nopos.analysis.counting import (
    dilution,
    dilution_of_queries,
    effect_of_erasing_values,
    effect_of_the_law,
    error_of_the_law,
    lawful_pattern,
    true_counts,
)
from nopos.analysis.metrics import per_token_kl
from nopos.data import held_out_tokens
from nopos.errors import AnalysisError
from nopos.model import NoPosTransformer


@pytest.fixture
def tokens(lawful):
    return held_out_tokens(lawful.config, 8)


def test_a_dilution_is_the_weight_of_BOS_over_the_mean_weight_of_another_token(micro, noisy):
    folded = twin_of(NoPosTransformer(micro, noisy(micro, 0)))
    weights = qk_circuit(folded, layer=0).exp()
    a = dilution(folded)
    assert a.shape == (micro.n_heads, micro.d_vocab)
    for head in range(micro.n_heads):
        for token in range(micro.d_vocab):
            expected = weights[head, token, 0] / weights[head, token, 1:].mean()
            assert a[head, token].item() == pytest.approx(expected.item())


def test_each_query_has_the_dilution_of_its_token(micro, noisy):
    folded = twin_of(NoPosTransformer(micro, noisy(micro, 0)))
    tokens = held_out_tokens(micro, 3)
    of_queries = dilution_of_queries(folded, tokens)
    assert of_queries.dtype == torch.float32
    for head in range(micro.n_heads):
        torch.testing.assert_close(of_queries[:, head].double(), dilution(folded)[head][tokens].double())


def test_the_law_by_hand():
    a = torch.tensor([[[9.0, 2.0, 2.0, 6.0]]])
    expected = [[1, 0, 0, 0], [2 / 3, 1 / 3, 0, 0], [1 / 2, 1 / 4, 1 / 4, 0], [2 / 3, 1 / 9, 1 / 9, 1 / 9]]
    torch.testing.assert_close(lawful_pattern(a, true_counts(torch.zeros(1, 4)))[0, 0], torch.tensor(expected))


def test_counts_by_hand_change_what_BOS_gets_and_leave_the_others_alike():
    a = torch.tensor([[[2.0, 2.0, 2.0]]])
    expected = [[1, 0, 0], [2 / 8, 6 / 8, 0], [2 / 3, 1 / 6, 1 / 6]]
    torch.testing.assert_close(lawful_pattern(a, torch.tensor([5.0, 6.0, 1.0]))[0, 0], torch.tensor(expected))


@given(
    a=st.lists(st.floats(0.01, 100), min_size=6, max_size=6), counts=st.lists(st.floats(0, 60), min_size=6, max_size=6)
)
def test_rows_of_the_law_are_distributions_over_what_a_query_may_see(a, counts):
    pattern = lawful_pattern(torch.tensor(a)[None, None], torch.tensor(counts))
    torch.testing.assert_close(pattern.sum(-1), torch.ones(1, 1, 6))
    assert (pattern.triu(1) == 0).all()
    assert (pattern >= 0).all()


def test_the_law_is_exact_where_all_other_keys_are_alike(lawful, tokens):
    twin = twin_of(lawful)
    a = dilution(twin)[0, 1:]
    assert (a.max() / a.min()).item() > 1.1
    assert error_of_the_law(lawful, tokens, twin=twin) < 1e-5
    assert effect_of_the_law(lawful, tokens, twin=twin).kl == pytest.approx(0, abs=1e-6)


def test_one_dilution_for_all_is_the_median_tokens(lawful, tokens):
    """What it changes is what the law with that number changes, and it changes something."""
    twin = twin_of(lawful)
    median = dilution(twin)[0, 1:].median().float().expand(8, 1, 26)
    pattern = lawful_pattern(median, true_counts(tokens))
    edited = lawful.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", lambda t, hook: pattern)])
    expected = per_token_kl(lawful(tokens), edited).mean().item()
    assert effect_of_the_law(lawful, tokens, twin=twin, one_for_all=True).kl == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-4


def test_the_error_of_the_law_is_that_of_the_weight_on_BOS(micro, noisy):
    model = NoPosTransformer(micro, noisy(micro, 0))
    tokens, twin = held_out_tokens(micro, 4), twin_of(model)
    _, cache = model.run_with_cache(tokens)
    a, squares = dilution(twin), []
    for batch, row in enumerate(tokens):
        for head in range(micro.n_heads):
            for query in range(1, micro.n_ctx):
                lawful = a[head, row[query]] / (a[head, row[query]] + query)
                squares.append((cache["blocks.0.attn.hook_pattern"][batch, head, query, 0] / lawful - 1) ** 2)
    expected = torch.stack(squares).mean().sqrt().item()
    assert expected > 0.1
    assert error_of_the_law(model, tokens, twin=twin) == pytest.approx(expected, rel=1e-4)


def test_values_that_are_alike_can_be_erased_and_that_of_BOS_cannot(lawful, tokens):
    other_tokens = held_out_tokens(lawful.config, 8, stream=1)
    others, bos = (
        effect_of_erasing_values(lawful, tokens, other_tokens=other_tokens, whose=whose) for whose in ("others", "BOS")
    )
    assert others.kl == pytest.approx(0, abs=1e-6)
    assert bos.kl > 1e-4


@pytest.mark.parametrize(("whose", "slots"), [("BOS", slice(0, 1)), ("others", slice(1, None))])
def test_an_erased_value_is_the_mean_of_the_other_tokens(micro, noisy, whose, slots):
    model = NoPosTransformer(micro, noisy(micro, 0))
    tokens, other_tokens = held_out_tokens(micro, 4), held_out_tokens(micro, 4, stream=1)
    mean = model.run_with_cache(other_tokens)[1]["blocks.0.attn.hook_v"][:, 1:].mean(dim=(0, 1))

    def erase(v, hook):
        v = v.clone()
        v[:, slots] = mean
        return v

    edited = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_v", erase)])
    expected = per_token_kl(model(tokens), edited).mean().item()
    effect = effect_of_erasing_values(model, tokens, other_tokens=other_tokens, whose=whose)
    assert effect.kl == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-4


def test_the_parts_of_the_law_by_hand(micro, noisy):
    """The law's weight on BOS with the model's proportions among the others, and the other way round."""
    model = NoPosTransformer(micro, noisy(micro, 0))
    tokens, twin = held_out_tokens(micro, 4), twin_of(model)
    own = model.run_with_cache(tokens)[1]["blocks.0.attn.hook_pattern"]
    lawful = lawful_pattern(dilution_of_queries(twin, tokens), true_counts(tokens))
    for part, on_bos, on_others in (("BOS", lawful, own), ("others", own, lawful)):
        joined = on_others.clone()
        joined[..., 0] = on_bos[..., 0]
        joined[..., 1:, 1:] *= ((1 - on_bos[..., 0]) / (1 - on_others[..., 0]))[..., 1:, None]
        torch.testing.assert_close(joined.sum(-1), torch.ones_like(joined[..., 0]))
        edited = model.run_with_hooks(
            tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", lambda t, hook, new=joined: new)]
        )
        expected = per_token_kl(model(tokens), edited).mean().item()
        assert effect_of_the_law(model, tokens, twin=twin, part=part).kl == pytest.approx(expected, rel=1e-3)
        assert expected > 1e-5


def test_parts_and_owners_that_there_are_not_are_one_clear_line(lawful, tokens):
    with pytest.raises(AnalysisError, match="part is 'bos'; it must be one of all, BOS, others"):
        effect_of_the_law(lawful, tokens, twin=twin_of(lawful), part="bos")
    with pytest.raises(AnalysisError, match="whose is 'all'; it must be one of BOS, others"):
        effect_of_erasing_values(lawful, tokens, other_tokens=tokens, whose="all")


def test_dilutions_are_read_off_a_folded_model(lawful):
    with pytest.raises(AnalysisError, match="fold it first"):
        dilution(lawful)
