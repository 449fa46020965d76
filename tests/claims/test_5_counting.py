"""Layer 0 counts: its attention to BOS is diluted by every token that follows."""

from __future__ import annotations

import torch

from nopos import claim
from nopos.analysis.attention import effect_of_erasing_bos_key, mean_pattern
from nopos.analysis.circuits import qk_circuit
from nopos.analysis.counting import effect_of_erasing_values, effect_of_the_law, error_of_the_law
from nopos.analysis.places import (
    places_after_a_second_bos,
    places_with_bos_weighed,
    places_with_the_key_of_bos_elsewhere,
    places_with_values_erased,
    shift_by_dilution,
)
from nopos.controls import (
    CLOCK,
    LEARNED_POSITIONS,
    NO_BOS,
    RELAY,
    TWO_BACK,
    UNTRAINED,
    WITHOUT_BOS_KEY,
)


@claim(
    rung="correlational",
    source="notebook, step 5, mean pattern of layer 0",
    refuted_by=[LEARNED_POSITIONS, RELAY, WITHOUT_BOS_KEY, UNTRAINED],
)
def test_layer_0_attends_to_BOS_several_times_as_much_as_to_others_and_less_with_every_slot(subject, measure):
    """In the mean BOS gets, at every slot, several times what another key gets, and less at each slot than before."""
    pattern = subject.run(mean_pattern, layer=0)[1:]  # from slot 1 on, where there is another key
    on_bos = pattern[:, 0]
    per_other_key = pattern[:, 1:].sum(dim=1) / torch.arange(1, len(pattern) + 1)
    assert measure("least weight on BOS, over that on another key", (on_bos / per_other_key).min().item()) > 2.0
    assert measure("largest change of it from a slot to the next", on_bos.diff().max().item()) < 0.0


@claim(
    rung="correlational",
    source="notebook, step 6, QK circuit of layer 0",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, UNTRAINED],
)
def test_layer_0_QK_circuit_tells_BOS_from_tokens_and_hardly_tokens_from_each_other(subject, measure):
    """For every query token the score of BOS lies above all others, by several times what these differ by."""
    scores = qk_circuit(subject.folded, layer=0)[0, 1:]  # [query_token key_token]
    lead = (scores[:, 0] - scores[:, 1:].amax(dim=1)).min().item()
    spread = max(scores[:, 1:].std(dim=1).mean().item(), torch.finfo(scores.dtype).eps)
    assert measure("least lead of BOS over the next key, over all query tokens", lead) > 0.5
    assert measure("this lead, over the standard deviation among the others", lead / spread) > 4.0


@claim(rung="causal", source="notebook, step 6", refuted_by=[LEARNED_POSITIONS, RELAY, WITHOUT_BOS_KEY, TWO_BACK])
def test_the_count_comes_from_the_key_of_BOS(subject, measure):
    """When layer 0's key of BOS is the mean of the others', the prediction is destroyed."""
    effect = subject.run(effect_of_erasing_bos_key, layer=0)
    assert measure("nats added by erasing the key of BOS", effect.nats_added, "nats") > 4.0


@claim(
    rung="constructive",
    source="Kazemnejad 2023, theorem 1",
    refuted_by=[LEARNED_POSITIONS, RELAY, WITHOUT_BOS_KEY, UNTRAINED],
)
def test_layer_0_attends_by_the_law_of_dilution(subject, measure):
    """After i other keys BOS gets a/(a+i), by an `a` that the weights give each query token: put in, answers stay."""
    error = subject.run(error_of_the_law, twin=subject.folded)
    assert measure("root mean square relative error of the law on BOS", error) < 0.04
    for part, what in (("all", "the law"), ("BOS", "its weight on BOS alone"), ("others", "all others alike alone")):
        effect = subject.run(effect_of_the_law, twin=subject.folded, part=part)
        assert measure(f"share of answers changed by {what}", effect.answers_changed) < 0.03
        assert measure(f"KL by {what}", effect.kl, "nats") < 0.1


@claim(
    rung="causal",
    source="the question why one dilution for all tokens costs so much",
    refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK],
)
def test_later_layers_allow_for_each_token_diluting_BOS_by_its_own_a(subject, measure):
    """Told the median token's attention instead of its own, a token is misplaced by what its own `a` made of it."""
    own, one = (
        subject.run(effect_of_the_law, twin=subject.folded, one_for_all=one_for_all) for one_for_all in (False, True)
    )
    told_own, told_one = (
        subject.run(shift_by_dilution, other_tokens=subject.other_tokens, twin=subject.folded, one_for_all=one_for_all)
        for one_for_all in (False, True)
    )
    more = one.answers_changed - own.answers_changed
    assert measure("share of answers changed by one a for all, less by each its own", more) > 0.04
    assert measure("shift of places, over the misreading, told one for all", told_one) > 0.5
    assert measure("size of that shift, told each its own", abs(told_own)) < 0.3


@claim(
    rung="causal",
    source="the law of dilution: 2a/(2a+i-1)",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, CLOCK],
)
def test_slots_are_where_the_law_says_whatever_becomes_of_BOS(subject, measure):
    """A second BOS halves the count, as does BOS weighing twice; half doubles it; without its key it runs out."""

    def error(analysis, **options):
        return subject.run(analysis, other_tokens=subject.other_tokens, **options).error

    assert measure("error of the places after a second BOS", error(places_after_a_second_bos, slot=5), "slots") < 1.5
    for factor in (2.0, 0.5):
        weighed = error(places_with_bos_weighed, factor=factor)
        assert measure(f"error of the places, BOS weighing {factor:g} times", weighed, "slots") < 2.0
    elsewhere = error(places_with_the_key_of_bos_elsewhere, twin=subject.folded, slot=5)
    assert measure("error of the places, the key of BOS in slot 5", elsewhere, "slots") < 4.0


@claim(
    rung="causal",
    source="notebook, step 7, which averages all values alike",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, UNTRAINED],
)
def test_only_the_value_of_BOS_tells_slots_apart(subject, measure):
    """Layer 0's values of all other tokens may be one and the same: slots keep their places, and most answers stay."""

    def erased(analysis, whose):
        return subject.run(analysis, other_tokens=subject.other_tokens, whose=whose)

    others, bos = (erased(places_with_values_erased, whose).error for whose in ("others", "BOS"))
    changed = erased(effect_of_erasing_values, "others").answers_changed
    assert measure("error of the places, other tokens' values erased", others, "slots") < 1.5
    assert measure("the same, the value of BOS erased", bos, "slots") > 10.0
    assert measure("share of answers changed, other tokens' values erased", changed) < 0.1
