"""Layer 0 counts: its attention to BOS is diluted by every token that follows."""

from __future__ import annotations

import torch

from nopos import claim
from nopos.mechanism import decoded_position
from nopos.mechanism.count import effect_of_averaging_values, effect_of_the_law, error_of_the_law
from nopos.methods.attention import effect_of_averaging_bos_key, mean_pattern
from nopos.methods.circuits import qk_circuit
from nopos.subjects.controls import (
    CLOCK,
    LEARNED_POSITIONS,
    NO_BOS,
    RELAY,
    TWO_BACK,
    UNTRAINED,
    WITHOUT_BOS_KEY,
)
from nopos.subjects.scopes import TWO_OR_MORE_LAYERS


@claim(
    evidence="correlational",
    source="notebook, step 5, mean pattern of layer 0",
    refuted_by=[LEARNED_POSITIONS, RELAY, WITHOUT_BOS_KEY, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_layer_0_attends_to_BOS_several_times_as_much_as_to_others_and_less_with_every_position(subject, measure):
    """In the mean BOS gets, at every position, several times what another key gets, and less than at the one before."""
    pattern = subject.run(mean_pattern, layer=0)[1:]  # from position 1 on, where there is another key
    on_bos = pattern[:, 0]
    per_other_key = pattern[:, 1:].sum(dim=1) / torch.arange(1, len(pattern) + 1)
    assert measure("least weight on BOS, over that on another key", (on_bos / per_other_key).min().item()) > 2.0
    assert measure("largest change of it from a position to the next", on_bos.diff().max().item()) < 0.0


@claim(
    evidence="correlational",
    source="notebook, step 6, QK circuit of layer 0",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_layer_0_QK_circuit_tells_BOS_from_tokens_and_hardly_tokens_from_each_other(subject, measure):
    """For every query token the score of BOS lies above all others, by several times what these differ by."""
    scores = subject.run(qk_circuit, layer=0)[:, 1:]  # [head query_token key_token]
    lead = (scores[..., 0] - scores[..., 1:].amax(dim=-1)).min().item()
    spread = max(scores[..., 1:].std(dim=-1).mean(dim=-1).max().item(), torch.finfo(scores.dtype).eps)
    assert measure("least lead of BOS over the next key, over all query tokens", lead) > 0.5
    assert measure("this lead, over the standard deviation among the others", lead / spread) > 4.0


@claim(
    evidence="causal",
    source="notebook, step 6",
    refuted_by=[LEARNED_POSITIONS, RELAY, WITHOUT_BOS_KEY],
    scope=TWO_OR_MORE_LAYERS,
)
def test_the_count_comes_from_the_key_of_BOS(subject, measure):
    """When layer 0's key of BOS is the mean of the others', the prediction is destroyed."""
    effect = subject.run(effect_of_averaging_bos_key, layer=0)
    assert measure("nats added, the key of BOS averaged", effect.nats_added, "nats") > 4.0


@claim(
    evidence="constructive",
    source="Kazemnejad 2023, theorem 1",
    refuted_by=[LEARNED_POSITIONS, RELAY, WITHOUT_BOS_KEY, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_layer_0_attends_by_the_law_of_dilution(subject, measure):
    """After i other keys BOS gets a/(a+i), by an `a` that the weights give each query token: put in, answers stay."""
    error = subject.run(error_of_the_law)
    assert measure("root mean square relative error of the law on BOS", error) < 0.04
    for part, what in (("all", "the law"), ("BOS", "its weight on BOS alone"), ("others", "equal other weights alone")):
        effect = subject.run(effect_of_the_law, part=part)
        assert measure(f"share of answers changed by {what}", effect.answers_changed) < 0.03
        assert measure(f"KL by {what}", effect.kl, "nats") < 0.1


@claim(
    evidence="causal",
    source="the question why one dilution for all tokens costs so much",
    refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK],
    scope=TWO_OR_MORE_LAYERS,
)
def test_later_layers_allow_for_each_token_diluting_BOS_by_its_own_a(subject, measure):
    """With the median token's attention for all, a token is decoded where its own `a` puts that attention."""
    own, one = (subject.run(effect_of_the_law, one_for_all=one_for_all) for one_for_all in (False, True))
    with_own, with_one = (
        subject.run(decoded_position.shift_by_dilution, one_for_all=one_for_all) for one_for_all in (False, True)
    )
    more = one.answers_changed - own.answers_changed
    assert measure("share of answers changed by one a for all, less by each its own", more) > 0.04
    assert measure("slope of the decoded shift on the predicted one, one a for all", with_one) > 0.5
    assert measure("size of that slope, each its own a", abs(with_own)) < 0.3


@claim(
    evidence="causal",
    source="the law of dilution: 2a/(2a+i-1)",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, CLOCK],
    scope=TWO_OR_MORE_LAYERS,
)
def test_positions_are_decoded_where_the_law_puts_them_whatever_becomes_of_BOS(subject, measure):
    """A second BOS halves the count, as does BOS weighing twice; half doubles it; without its key it runs out."""
    early = subject.config.n_ctx // 10
    second = subject.run(decoded_position.after_a_second_bos, position=early)
    twice, half = (subject.run(decoded_position.with_bos_weighted, factor=factor) for factor in (2.0, 0.5))
    elsewhere = subject.run(decoded_position.with_the_key_of_bos_elsewhere, position=early)
    assert measure("error of decoded positions after a second BOS", second.error, "positions") < 1.5
    assert measure("the same, BOS weighing twice", twice.error, "positions") < 2.0
    assert measure("the same, BOS weighing half", half.error, "positions") < 2.0
    assert measure("the same, the key of BOS after a tenth of the positions", elsewhere.error, "positions") < 4.0


@claim(
    evidence="causal",
    source="notebook, step 7, which averages all values",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_only_the_value_of_BOS_tells_positions_apart(subject, measure):
    """Layer 0's values of all other tokens may be one and the same: positions are decoded, and most answers stay."""
    others, bos = (subject.run(decoded_position.with_values_averaged, keys=keys).error for keys in ("others", "BOS"))
    changed = subject.run(effect_of_averaging_values, keys="others").answers_changed
    assert measure("error of decoded positions, other tokens' values averaged", others, "positions") < 1.5
    assert measure("the same, the value of BOS averaged", bos, "positions") > 10.0
    assert measure("share of answers changed, other tokens' values averaged", changed) < 0.1
