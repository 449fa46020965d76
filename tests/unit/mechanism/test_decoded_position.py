from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nopos.errors import AnalysisError
from nopos.mechanism.count import PATTERN, dilution, dilution_of_queries, pattern_of_counts
from nopos.mechanism.decoded_position import (
    Positions,
    after_a_second_bos,
    answers_to_swapped_counts,
    nearest_on,
    of_patched_counts,
    position_decoder,
    shift_by_dilution,
    with_bos_weighted,
    with_the_key_of_bos_elsewhere,
    with_values_averaged,
)
from nopos.methods.activation_patching import Answers
from nopos.methods.attention import LATE
from nopos.model.data import held_out_tokens
from nopos.model.transformer import NoPosTransformer
from nopos.subjects.controls import reference
from tests.support.micro import folded_of


@pytest.fixture(scope="module")
def good():
    return reference()


@pytest.fixture
def tokens(law_model):
    return held_out_tokens(law_model.config, 8)


@pytest.fixture
def without_count(law_model):
    """Layer 0 writes the same whatever it attends to."""
    parameters = law_model.parameter_tensors()
    parameters["blocks.0.attn.W_V"] = torch.zeros_like(parameters["blocks.0.attn.W_V"])
    return NoPosTransformer(law_model.config, parameters)


@pytest.fixture
def other_tokens(law_model):
    return held_out_tokens(law_model.config, 8, stream=1)


def differing(observed, expected):
    """Share of decoded positions that are not the same to a twentieth of a position."""
    return ((observed - expected).abs() > 0.05).float().mean()


def test_the_error_of_decoded_positions_by_hand():
    """Over sequences too: positions that are right in the mean alone are wrong."""
    assert Positions(predicted=torch.tensor([[1.0, 2.0]]), observed=torch.tensor([[4.0, 6.0]])).error == pytest.approx(
        12.5**0.5
    )
    assert Positions(predicted=torch.tensor([[5.0]]), observed=torch.tensor([[4.0], [6.0]])).error == 1


def test_a_position_is_decoded_as_itself_where_nothing_else_tells_positions_apart(law_model, tokens):
    one = tokens[:1]
    assert position_decoder(law_model, one).decode(law_model, one)[0].tolist() == list(range(26))


def test_the_nearest_point_of_a_curve_by_hand():
    """On its pieces, at its corner, beyond either end."""
    curve = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    points = torch.tensor([[[0.25, -3.0], [5.0, 0.5]], [[1.5, -0.5], [1.0, 9.0]], [[-4.0, 1.0], [0.0, 0.0]]])
    torch.testing.assert_close(nearest_on(curve, points), torch.tensor([[0.25, 1.25], [1.0, 2.0], [0.0, 0.0]]))


def test_the_nearest_point_of_a_curve_that_stands_still_or_returns_by_hand():
    """A piece without length is its one point; of points that are as near the first counts."""
    still = torch.tensor([[0.0], [0.0], [2.0]])
    torch.testing.assert_close(nearest_on(still, torch.tensor([[-1.0], [1.0], [3.0]])), torch.tensor([0.0, 1.5, 2.0]))
    there_and_back = torch.tensor([[0.0], [2.0], [0.0]])
    torch.testing.assert_close(nearest_on(there_and_back, torch.tensor([[1.0], [5.0]])), torch.tensor([0.5, 1.0]))
    assert nearest_on(torch.zeros(4, 3), torch.ones(2, 3)).tolist() == [0.0, 0.0]


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
def test_no_point_of_a_curve_is_nearer_than_the_nearest(seed, scale):
    """Whatever the unit of the scores, and however many they are; points of the curve are where they are."""
    rng = torch.Generator().manual_seed(seed)
    curve, points = (scale * torch.randn(count, 3, generator=rng, dtype=torch.float64) for count in (6, 8))
    found = nearest_on(curve, points).double()
    along = torch.linspace(0, 5, 501, dtype=torch.float64)
    least = torch.cdist(points, at(curve, along)).amin(dim=-1)
    assert ((points - at(curve, found)).norm(dim=-1) <= least + 1e-4 * scale).all()
    assert ((found >= 0) & (found <= 5)).all()
    torch.testing.assert_close(nearest_on(curve / scale, points / scale).double(), found, atol=1e-5, rtol=0)
    torch.testing.assert_close(nearest_on(curve, curve), torch.arange(6.0), atol=1e-5, rtol=0)
    twice = (torch.cat([each, each], dim=-1) for each in (curve, points))
    torch.testing.assert_close(nearest_on(*twice).double(), found, atol=1e-5, rtol=0)


def at(curve, along):
    """Points of a curve of straight pieces, so many of which lie before them."""
    before = along.floor().clamp_max(len(curve) - 2).long()
    return curve[before] + (along - before)[:, None] * (curve[before + 1] - curve[before])


def test_a_decoded_position_is_where_the_scores_lie_nearest_to_the_curve_of_mean_keys(law_model, tokens, other_tokens):
    """By the mean query of each late position, as near as any of a fine grid of points on the curve."""
    observed = position_decoder(law_model, other_tokens).decode(law_model, tokens)
    cache = law_model.run_with_cache(other_tokens)[1]
    queries = cache["blocks.1.attn.hook_q"][:, LATE:, 0].mean(dim=0)
    curve = cache["blocks.1.attn.hook_k"][:, 1:, 0].mean(dim=0) @ queries.T
    scores = law_model.run_with_cache(tokens)[1]["blocks.1.attn.hook_k"][:, :, 0] @ queries.T
    fractions = torch.linspace(0, 1, 101)[:, None]
    fine = torch.cat([curve[one] + fractions * (curve[one + 1] - curve[one]) for one in range(24)])
    for batch in range(8):
        below = observed[batch, 1:].floor().clamp_max(24).long()
        fraction = (observed[batch, 1:] - below)[:, None]
        at = curve[below - 1] + fraction * (curve[below] - curve[below - 1])
        distance, least = (at - scores[batch, 1:]).norm(dim=-1), torch.cdist(scores[batch, 1:], fine).amin(dim=-1)
        assert (distance <= least + 1e-3 * curve.norm(dim=-1).max()).all()
    assert (observed[:, 0] == 0).all()


def test_a_key_between_two_mean_keys_is_decoded_between_their_positions(law_model, tokens):
    one = tokens[:1]
    decoder = position_decoder(law_model, one)
    halfway = {decoder.keys: lambda k: (k + k.roll(-1, dims=1)) / 2}
    observed = decoder.decode(law_model, one, halfway)[0, 1:25]
    torch.testing.assert_close(observed, torch.arange(1.5, 25), atol=1e-3, rtol=0)


@pytest.mark.parametrize("changes", [{"W_Q": 3.0, "b_Q": 3.0}, {"W_K": 0.5, "b_K": 0.5}], ids=["queries", "keys"])
def test_the_scale_of_scores_decodes_nothing_else(law_model, tokens, other_tokens, changes):
    parameters = law_model.parameter_tensors()
    for name, factor in changes.items():
        parameters[f"blocks.1.attn.{name}"] = factor * parameters[f"blocks.1.attn.{name}"]
    scaled = NoPosTransformer(law_model.config, parameters)
    own, others = (position_decoder(model, other_tokens).decode(model, tokens) for model in (law_model, scaled))
    assert differing(own, others) < 0.03


def test_edits_change_decoded_positions(law_model, tokens):
    shifted = {"blocks.1.attn.hook_k": lambda k: k.roll(-1, dims=1)}
    assert position_decoder(law_model, tokens[:1]).decode(law_model, tokens[:1], shifted)[0, 1:25].tolist() == list(
        range(2, 26)
    )


def test_after_a_second_BOS_the_law_predicts_half_the_count(law_model, tokens, other_tokens):
    with_two = tokens.clone()
    with_two[:, 5] = 0
    after = after_a_second_bos(law_model, tokens, other_tokens=other_tokens, position=5)
    assert after.predicted[0, :4].tolist() == [2.5, 3.0, 3.5, 4.0]
    assert torch.equal(after.observed, position_decoder(law_model, other_tokens).decode(law_model, with_two)[:, 6:])
    assert (tokens != 0)[:, 1:].all()


@pytest.mark.parametrize("position", [5, 30])
def test_the_reference_model_follows_the_law_after_a_second_BOS(good, position):
    decoded = after_a_second_bos(good.model, good.tokens, other_tokens=good.other_tokens, position=position)
    assert decoded.predicted.shape == (1, 49 - position)
    assert decoded.error < 1


@pytest.mark.parametrize("position", [0, -1, 25, 26])
def test_a_position_that_cannot_be_changed_is_one_clear_line(law_model, tokens, position):
    with pytest.raises(AnalysisError, match="in sequences of 26 it is 1 to 24"):
        after_a_second_bos(law_model, tokens, other_tokens=tokens, position=position)
    with pytest.raises(AnalysisError, match="in sequences of 26 it is 1 to 24"):
        with_the_key_of_bos_elsewhere(
            law_model, tokens, other_tokens=tokens, folded=folded_of(law_model), position=position
        )


@pytest.mark.parametrize(("factor", "asked"), [(1.0, range(1, 26)), (2.0, range(2, 26)), (0.5, range(1, 13))])
def test_BOS_that_weighs_a_factor_is_as_a_dilution_larger_by_it(law_model, tokens, other_tokens, factor, asked):
    """Positions are asked whose count is that of one after BOS."""
    heavier = pattern_of_counts(factor * dilution_of_queries(folded_of(law_model), tokens), torch.arange(26.0))
    expected = position_decoder(law_model, other_tokens).decode(law_model, tokens, {PATTERN: lambda _: heavier})
    weighted = with_bos_weighted(law_model, tokens, other_tokens=other_tokens, factor=factor)
    assert weighted.predicted[0].tolist() == [position / factor for position in asked]
    assert differing(weighted.observed, expected[:, list(asked)]) < 0.03  # two pieces as near within rounding
    plain = position_decoder(law_model, other_tokens).decode(law_model, tokens)[:, list(asked)]
    assert factor == 1 or differing(weighted.observed, plain) > 0.2


@pytest.mark.parametrize("factor", [0.0, -1.0, 0.01, 26.0, float("nan")])
def test_a_factor_that_moves_every_count_away_is_one_clear_line(law_model, tokens, factor):
    with pytest.raises(AnalysisError, match="in sequences of 26 it is 1/25 to 25"):
        with_bos_weighted(law_model, tokens, other_tokens=tokens, factor=factor)


def test_the_key_of_BOS_elsewhere_dilutes_the_value_of_BOS_as_predicted(law_model, tokens, other_tokens):
    """Where the law is exact the pattern with the predicted counts is the pattern with the keys swapped."""
    folded = folded_of(law_model)
    a, i = dilution_of_queries(folded, tokens)[:, 0], torch.arange(26.0)
    counts = torch.where(i < 5, a * i, a * (a + i - 1))
    elsewhere = with_the_key_of_bos_elsewhere(law_model, tokens, other_tokens=other_tokens, folded=folded, position=5)
    torch.testing.assert_close(elsewhere.predicted, counts.clamp_max(25)[:, 1:])
    expected = torch.stack(
        [
            position_decoder(law_model, other_tokens).decode(
                law_model, row[None], {PATTERN: lambda _, n=n, d=d: pattern_of_counts(d[None, None], n)}
            )[0]
            for row, n, d in zip(tokens, counts, a, strict=True)
        ]
    )
    assert differing(elsewhere.observed, expected[:, 1:]) < 0.03


def test_averaged_values_leave_positions_where_they_are_alike_and_that_of_BOS_does_not(law_model, tokens, other_tokens):
    plain = position_decoder(law_model, other_tokens).decode(law_model, tokens)[:, 1:]
    others, bos = (
        with_values_averaged(law_model, tokens, other_tokens=other_tokens, keys=keys) for keys in ("others", "BOS")
    )
    assert differing(others.observed, plain) < 0.03
    assert differing(bos.observed, plain) > 0.2
    assert others.predicted[0].tolist() == list(range(1, 26))
    of_one_token = bos.observed[tokens[:, 1:] == 3]
    assert of_one_token.max() - of_one_token.min() < 1e-3  # without a count nothing but the token tells positions apart


def test_a_patched_count_replaces_the_true_one_in_every_position(law_model, tokens, other_tokens):
    folded = folded_of(law_model)
    patched = of_patched_counts(law_model, tokens, other_tokens=other_tokens, folded=folded, counts=(3, 20))
    for number, count in enumerate((3, 20)):
        pattern = pattern_of_counts(dilution_of_queries(folded, tokens), torch.full((26,), float(count)))
        expected = position_decoder(law_model, other_tokens).decode(
            law_model, tokens, {PATTERN: lambda _, p=pattern: p}
        )[:, LATE:]
        assert torch.equal(patched.observed[:, 16 * number : 16 * (number + 1)], expected)
        assert (patched.predicted[0, 16 * number : 16 * (number + 1)] == count).all()
    assert not torch.equal(patched.observed[:, :16], patched.observed[:, 16:])


@pytest.mark.parametrize("counts", [(), (0,), (5, 26), (-1,)], ids=str)
def test_counts_of_no_position_are_one_clear_line(law_model, tokens, counts):
    with pytest.raises(AnalysisError, match="they must be one or more, from 1 to 25"):
        of_patched_counts(law_model, tokens, other_tokens=tokens, folded=folded_of(law_model), counts=counts)


def test_counts_mean_nothing_to_a_model_whose_layer_0_writes_nothing_of_them(without_count, tokens):
    folded = folded_of(without_count)
    observed = of_patched_counts(without_count, tokens, other_tokens=tokens, folded=folded, counts=(3, 20)).observed
    torch.testing.assert_close(observed[:, :16], observed[:, 16:], atol=1e-3, rtol=0)
    before, swapped = answers_to_swapped_counts(without_count, tokens, folded=folded, offsets=(1, 2))
    assert (before.near, before.far) == pytest.approx((swapped.near, swapped.far), abs=1e-5)


@pytest.mark.parametrize("one_for_all", [True, False])
def test_a_shift_by_hand(law_model, tokens, other_tokens, one_for_all):
    """A regression over the tokens of each position, from 10 to 15, on how far the token is misread."""
    folded = folded_of(law_model)
    a = dilution(folded)[0]
    median = a[1:].median()
    given = a[tokens] if not one_for_all else median.expand(8, 26)
    pattern = pattern_of_counts(given[:, None].float(), torch.arange(26.0))
    observed = position_decoder(law_model, other_tokens).decode(law_model, tokens, {PATTERN: lambda _: pattern})
    above = below = 0.0
    for position in range(10, 16):
        misread = position * (a[tokens[:, position]] / median - 1)
        by = misread - misread.mean()
        above, below = (
            above + (by * (observed[:, position] - observed[:, position].mean())).sum(),
            below + (by * by).sum(),
        )
    options = {"other_tokens": other_tokens, "folded": folded, "one_for_all": one_for_all}
    assert shift_by_dilution(law_model, tokens, **options) == pytest.approx((above / below).item(), rel=1e-3, abs=1e-4)


def test_a_shift_shows_whose_dilution_later_layers_allow_for(good):
    """Under dilutions that are another token's, decoded positions follow the misreading the other way round."""
    options = {"other_tokens": good.other_tokens}
    permuted = deepcopy(good.folded)
    order = 1 + torch.randperm(299, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        permuted.embed.W_E[1:] = permuted.embed.W_E[order]

    def shift(folded, *, one_for_all):
        return shift_by_dilution(good.model, good.tokens, folded=folded, one_for_all=one_for_all, **options)

    assert shift(good.folded, one_for_all=True) == pytest.approx(1, abs=0.2)
    assert shift(good.folded, one_for_all=False) == pytest.approx(0, abs=0.2)
    assert shift(permuted, one_for_all=True) == pytest.approx(0, abs=0.2)
    assert shift(permuted, one_for_all=False) == pytest.approx(-1, abs=0.2)


def test_sequences_without_late_positions_are_one_clear_line(law_model, tokens):
    with pytest.raises(AnalysisError, match="sequences have 10 positions; this analysis needs at least 11"):
        position_decoder(law_model, tokens[:, :10])
    with pytest.raises(AnalysisError, match="sequences have 20 positions; this analysis needs at least 21"):
        shift_by_dilution(law_model, tokens[:, :20], other_tokens=tokens, folded=folded_of(law_model), one_for_all=True)


def test_swapped_counts_by_hand_and_the_reference_model_follows_them(good):
    """The positions 1 and 2 before queries 3, 8, 13 and so on have each other's count."""
    model, folded, tokens, queries = good.model, good.folded, good.tokens[:8], torch.arange(3, 50, 5)
    counts = torch.arange(50.0)
    swapped = counts.clone()
    for query in queries.tolist():
        swapped[query - 1], swapped[query - 2] = query - 2, query - 1
    expected = []
    for given_counts in (counts, swapped):
        pattern = pattern_of_counts(dilution_of_queries(folded, tokens), given_counts)
        logits = model.run_with_hooks(tokens, fwd_hooks=[(PATTERN, lambda t, hook, p=pattern: p)])
        answers = logits.argmax(-1)[:, queries]
        expected.append(Answers(*((answers == tokens[:, queries - k]).float().mean().item() for k in (1, 2))))
    assert answers_to_swapped_counts(model, tokens, folded=folded, offsets=(1, 2)) == tuple(expected)
    before, after = expected
    assert before.near > 0.95
    assert before.far < 0.05
    assert after.far > 0.5
