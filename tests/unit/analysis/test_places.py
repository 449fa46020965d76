from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from fixtures.micro import twin_of
from nopos.analysis.counting import COUNTER, dilution, dilution_of_queries, lawful_pattern
from nopos.analysis.patching import Answers
from nopos.analysis.places import (
    LATE,
    Places,
    answers_to_exchanged_counts,
    places_after_a_second_bos,
    places_of_faked_counts,
    places_with_bos_weighed,
    places_with_the_key_of_bos_elsewhere,
    places_with_values_erased,
    ruler,
    shift_by_dilution,
)
from nopos.controls import reference
from nopos.data import held_out_tokens, per_token_loss
from nopos.errors import AnalysisError
from nopos.model import NoPosTransformer


@pytest.fixture(scope="module")
def good():
    return reference()


@pytest.fixture
def tokens(lawful):
    return held_out_tokens(lawful.config, 8)


@pytest.fixture
def without_count(lawful):
    """Layer 0 writes the same whatever it attends to."""
    parameters = lawful.parameter_tensors()
    parameters["blocks.0.attn.W_V"] = torch.zeros_like(parameters["blocks.0.attn.W_V"])
    return NoPosTransformer(lawful.config, parameters)


@pytest.fixture
def other_tokens(lawful):
    return held_out_tokens(lawful.config, 8, stream=1)


def test_the_error_of_places_by_hand():
    """Over sequences too: places that are right in the mean alone are wrong."""
    assert Places(said=torch.tensor([[1.0, 2.0]]), found=torch.tensor([[4.0, 6.0]])).error == pytest.approx(12.5**0.5)
    assert Places(said=torch.tensor([[5.0]]), found=torch.tensor([[4.0], [6.0]])).error == 1


def test_a_slots_place_is_itself_where_nothing_else_tells_slots_apart(lawful, tokens):
    one = tokens[:1]
    assert ruler(lawful, one).places(lawful, one)[0].tolist() == list(range(26))


def test_a_place_is_the_slot_whose_mean_score_is_nearest(lawful, tokens, other_tokens):
    found = ruler(lawful, other_tokens).places(lawful, tokens)
    cache = lawful.run_with_cache(other_tokens)[1]
    query = cache["blocks.1.attn.hook_q"][:, LATE:, 0].mean(dim=(0, 1))
    marks = (cache["blocks.1.attn.hook_k"][:, :, 0] @ query).mean(dim=0)
    scores = lawful.run_with_cache(tokens)[1]["blocks.1.attn.hook_k"][:, :, 0] @ query
    for batch in range(8):
        for slot in range(1, 26):
            expected = 1 + min(range(25), key=lambda mark: abs(scores[batch, slot] - marks[1 + mark]))
            assert found[batch, slot] == expected
    assert (found[:, 0] == 0).all()


def test_edits_move_places(lawful, tokens):
    shifted = {"blocks.1.attn.hook_k": lambda k: k.roll(-1, dims=1)}
    assert ruler(lawful, tokens[:1]).places(lawful, tokens[:1], shifted)[0, 1:25].tolist() == list(range(2, 26))


def test_after_a_second_BOS_the_law_says_half_the_count(lawful, tokens, other_tokens):
    with_two = tokens.clone()
    with_two[:, 5] = 0
    found = places_after_a_second_bos(lawful, tokens, other_tokens=other_tokens, slot=5)
    assert found.said[0, :4].tolist() == [2.5, 3.0, 3.5, 4.0]
    assert torch.equal(found.found, ruler(lawful, other_tokens).places(lawful, with_two)[:, 6:])
    assert (tokens != 0)[:, 1:].all()


@pytest.mark.parametrize("slot", [5, 30])
def test_the_reference_model_follows_the_law_after_a_second_BOS(good, slot):
    moved = places_after_a_second_bos(good.model, good.tokens, other_tokens=good.other_tokens, slot=slot)
    assert moved.said.shape == (1, 49 - slot)
    assert moved.error < 1


@pytest.mark.parametrize("slot", [0, -1, 25, 26])
def test_a_slot_that_cannot_be_changed_is_one_clear_line(lawful, tokens, slot):
    with pytest.raises(AnalysisError, match="in sequences of 26 it is 1 to 24"):
        places_after_a_second_bos(lawful, tokens, other_tokens=tokens, slot=slot)
    with pytest.raises(AnalysisError, match="in sequences of 26 it is 1 to 24"):
        places_with_the_key_of_bos_elsewhere(lawful, tokens, other_tokens=tokens, twin=twin_of(lawful), slot=slot)


@pytest.mark.parametrize(("factor", "asked"), [(1.0, range(1, 26)), (2.0, range(2, 26)), (0.5, range(1, 13))])
def test_BOS_that_weighs_a_factor_is_as_a_dilution_larger_by_it(lawful, tokens, other_tokens, factor, asked):
    """Slots are asked whose count is one of a slot after BOS."""
    heavier = lawful_pattern(factor * dilution_of_queries(twin_of(lawful), tokens), torch.arange(26.0))
    expected = ruler(lawful, other_tokens).places(lawful, tokens, {COUNTER: lambda _: heavier})
    weighed = places_with_bos_weighed(lawful, tokens, other_tokens=other_tokens, factor=factor)
    assert weighed.said[0].tolist() == [slot / factor for slot in asked]
    assert (weighed.found != expected[:, list(asked)]).float().mean() < 0.03  # ties within rounding
    plain = ruler(lawful, other_tokens).places(lawful, tokens)[:, list(asked)]
    assert factor == 1 or (weighed.found != plain).float().mean() > 0.2


@pytest.mark.parametrize("factor", [0.0, -1.0, 0.01, 26.0, float("nan")])
def test_a_factor_that_moves_every_count_away_is_one_clear_line(lawful, tokens, factor):
    with pytest.raises(AnalysisError, match="in sequences of 26 it is 1/25 to 25"):
        places_with_bos_weighed(lawful, tokens, other_tokens=tokens, factor=factor)


def test_the_key_of_BOS_in_another_slot_dilutes_the_value_of_BOS_as_said(lawful, tokens, other_tokens):
    """On a model on which the law is exact the pattern with a count as said is the pattern with the keys exchanged."""
    twin = twin_of(lawful)
    a, i = dilution_of_queries(twin, tokens)[:, 0], torch.arange(26.0)
    counts = torch.where(i < 5, a * i, a * (a + i - 1))
    elsewhere = places_with_the_key_of_bos_elsewhere(lawful, tokens, other_tokens=other_tokens, twin=twin, slot=5)
    torch.testing.assert_close(elsewhere.said, counts.clamp_max(25)[:, 1:])
    expected = torch.stack(
        [
            ruler(lawful, other_tokens).places(
                lawful, row[None], {COUNTER: lambda _, n=n, d=d: lawful_pattern(d[None, None], n)}
            )[0]
            for row, n, d in zip(tokens, counts, a, strict=True)
        ]
    )
    assert (elsewhere.found != expected[:, 1:]).float().mean() < 0.03


def test_values_erased_leave_places_where_they_are_alike_and_that_of_BOS_does_not(lawful, tokens, other_tokens):
    plain = ruler(lawful, other_tokens).places(lawful, tokens)[:, 1:]
    others, bos = (
        places_with_values_erased(lawful, tokens, other_tokens=other_tokens, whose=whose) for whose in ("others", "BOS")
    )
    assert (others.found != plain).float().mean() < 0.03
    assert (bos.found != plain).float().mean() > 0.2
    assert others.said[0].tolist() == list(range(1, 26))
    assert (
        bos.found[tokens[:, 1:] == 3].unique().numel() == 1
    )  # without a count nothing but the token tells slots apart


def test_a_faked_count_replaces_the_true_one_in_every_slot(lawful, tokens, other_tokens):
    twin = twin_of(lawful)
    faked = places_of_faked_counts(lawful, tokens, other_tokens=other_tokens, twin=twin, counts=(3, 20))
    for number, count in enumerate((3, 20)):
        pattern = lawful_pattern(dilution_of_queries(twin, tokens), torch.full((26,), float(count)))
        expected = ruler(lawful, other_tokens).places(lawful, tokens, {COUNTER: lambda _, p=pattern: p})[:, LATE:]
        assert torch.equal(faked.found[:, 16 * number : 16 * (number + 1)], expected)
        assert (faked.said[0, 16 * number : 16 * (number + 1)] == count).all()
    assert not torch.equal(faked.found[:, :16], faked.found[:, 16:])


@pytest.mark.parametrize("counts", [(), (0,), (5, 26), (-1,)], ids=str)
def test_counts_of_no_slot_are_one_clear_line(lawful, tokens, counts):
    with pytest.raises(AnalysisError, match="they must be one or more, from 1 to 25"):
        places_of_faked_counts(lawful, tokens, other_tokens=tokens, twin=twin_of(lawful), counts=counts)


def test_counts_mean_nothing_to_a_model_whose_layer_0_writes_nothing_of_them(without_count, tokens):
    twin = twin_of(without_count)
    found = places_of_faked_counts(without_count, tokens, other_tokens=tokens, twin=twin, counts=(3, 20)).found
    assert torch.equal(found[:, :16], found[:, 16:])
    before, exchanged = answers_to_exchanged_counts(without_count, tokens, twin=twin)
    assert (before.near, before.far) == pytest.approx((exchanged.near, exchanged.far), abs=1e-5)


@pytest.mark.parametrize("one_for_all", [True, False])
def test_a_shift_by_hand(lawful, tokens, other_tokens, one_for_all):
    """A regression over the tokens of each slot, from 10 to 15, on how far the token is misread."""
    twin = twin_of(lawful)
    a = dilution(twin)[0]
    median = a[1:].median()
    told = a[tokens] if not one_for_all else median.expand(8, 26)
    pattern = lawful_pattern(told[:, None].float(), torch.arange(26.0))
    found = ruler(lawful, other_tokens).places(lawful, tokens, {COUNTER: lambda _: pattern})
    above = below = 0.0
    for slot in range(10, 16):
        misread = slot * (a[tokens[:, slot]] / median - 1)
        by = misread - misread.mean()
        above, below = above + (by * (found[:, slot] - found[:, slot].mean())).sum(), below + (by * by).sum()
    options = {"other_tokens": other_tokens, "twin": twin, "one_for_all": one_for_all}
    assert shift_by_dilution(lawful, tokens, **options) == pytest.approx((above / below).item(), rel=1e-3, abs=1e-4)


def test_a_shift_shows_whose_dilution_later_layers_allow_for(good):
    """Under dilutions that are another token's, places follow the misreading the other way round."""
    options = {"other_tokens": good.other_tokens}
    permuted = deepcopy(good.folded)
    order = 1 + torch.randperm(299, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        permuted.embed.W_E[1:] = permuted.embed.W_E[order]

    def shift(twin, *, one_for_all):
        return shift_by_dilution(good.model, good.tokens, twin=twin, one_for_all=one_for_all, **options)

    assert shift(good.folded, one_for_all=True) == pytest.approx(1, abs=0.2)
    assert shift(good.folded, one_for_all=False) == pytest.approx(0, abs=0.2)
    assert shift(permuted, one_for_all=True) == pytest.approx(0, abs=0.2)
    assert shift(permuted, one_for_all=False) == pytest.approx(-1, abs=0.2)


def test_sequences_without_late_slots_are_one_clear_line(lawful, tokens):
    with pytest.raises(AnalysisError, match="sequences have 10 slots; this analysis needs at least 11"):
        ruler(lawful, tokens[:, :10])
    with pytest.raises(AnalysisError, match="sequences have 20 slots; this analysis needs at least 21"):
        shift_by_dilution(lawful, tokens[:, :20], other_tokens=tokens, twin=twin_of(lawful), one_for_all=True)


def test_exchanged_counts_by_hand(lawful, tokens):
    """The slots 1 and 2 before queries 3, 8, 13, 18 and 23 have each other's count."""
    twin, queries = twin_of(lawful), torch.tensor([3, 8, 13, 18, 23])
    counts = torch.arange(26.0)
    swapped = counts.clone()
    for query in queries.tolist():
        swapped[query - 1], swapped[query - 2] = query - 2, query - 1
    expected = []
    for given_counts in (counts, swapped):
        pattern = lawful_pattern(dilution_of_queries(twin, tokens), given_counts)
        logits = lawful.run_with_hooks(tokens, fwd_hooks=[(COUNTER, lambda t, hook, p=pattern: p)])
        losses = [per_token_loss(logits, tokens, target_offset=k)[:, queries - k].mean().item() for k in (1, 2)]
        expected.append(Answers(*losses))
    assert answers_to_exchanged_counts(lawful, tokens, twin=twin) == tuple(expected)
    assert expected[0] != expected[1]
