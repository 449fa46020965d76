"""Layer 0 counts: its attention to BOS is diluted by every token that follows."""

from __future__ import annotations

import torch

from nopos import claim
from nopos.mechanism import decoded_position
from nopos.mechanism.count import effect_of_averaging_values, effect_of_the_law, error_of_the_law
from nopos.methods.attention import effect_of_averaging_bos_key, mean_pattern
from nopos.methods.circuits import qk_circuit
from nopos.methods.metrics import TENTHS
from nopos.subjects.controls import (
    CLOCK,
    LEARNED_POSITIONS,
    NO_BOS,
    RELAY,
    UNTRAINED,
    WITHOUT_BOS_KEY,
)
from nopos.subjects.scopes import FINDS_POSITIONS

HALF = TENTHS // 2


@claim(
    evidence="correlational",
    source="notebook, step 5, mean pattern of layer 0",
    refuted_by=[LEARNED_POSITIONS, RELAY, WITHOUT_BOS_KEY, UNTRAINED],
    scope=FINDS_POSITIONS,
)
def test_layer_0_attends_to_BOS_more_than_to_others_and_less_with_every_position(subject, measure):
    """In the mean BOS gets half as much again as another key or more, and less with every position."""
    pattern = subject.run(mean_pattern, layer=0)[1:]  # from position 1 on, where there is another key
    on_bos = pattern[:, 0]
    per_other_key = pattern[:, 1:].sum(dim=1) / torch.arange(1, len(pattern) + 1)
    assert measure("least weight on BOS, over that on another key", (on_bos / per_other_key).min().item()) > 1.5
    assert measure("largest change of it from a position to the next", on_bos.diff().max().item()) < 0.0


@claim(
    evidence="correlational",
    source="notebook, step 6, QK circuit of layer 0",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, UNTRAINED],
    scope=FINDS_POSITIONS,
)
def test_layer_0_QK_circuit_tells_BOS_from_tokens_and_hardly_tokens_from_each_other(subject, measure):
    """For every query token the score of BOS lies above all others, by several times what these differ by."""
    scores = subject.run(qk_circuit, layer=0)[:, 1:]  # [head query_token key_token]
    lead = (scores[..., 0] - scores[..., 1:].amax(dim=-1)).min().item()
    spread = max(scores[..., 1:].std(dim=-1).mean(dim=-1).max().item(), torch.finfo(scores.dtype).eps)
    assert measure("least lead of BOS over the next key, over the deviation among the others", lead / spread) > 8.0


@claim(
    evidence="causal",
    source="notebook, step 6",
    refuted_by=[LEARNED_POSITIONS, RELAY, WITHOUT_BOS_KEY],
    scope=FINDS_POSITIONS,
)
def test_the_count_comes_from_the_key_of_BOS(subject, measure):
    """When layer 0's key of BOS is the mean of the others', half of the answers change, and most of the first ones."""
    effect = subject.run(effect_of_averaging_bos_key, layer=0)
    assert measure("share of answers changed, the key of BOS averaged", effect.answers_changed) > 0.4
    assert measure("the same in the first tenth of the positions", effect.changed_by_tenth[0].item()) > 0.7


@claim(
    evidence="constructive",
    source="Kazemnejad 2023, theorem 1",
    refuted_by=[LEARNED_POSITIONS, RELAY, WITHOUT_BOS_KEY, UNTRAINED],
    scope=FINDS_POSITIONS,
)
def test_layer_0_attends_by_the_law_of_dilution(subject, measure):
    """After i other keys BOS gets a/(a+i), by an `a` that the weights give each query token: put in, answers stay."""
    error = subject.run(error_of_the_law)
    assert measure("root mean square relative error of the law on BOS", error) < 0.04
    for part, what in (("all", "the law"), ("BOS", "its weight on BOS alone"), ("others", "equal other weights alone")):
        changed = subject.run(effect_of_the_law, part=part).changed_by_tenth
        assert measure(f"most answers changed in a tenth of the positions by {what}", changed.max().item()) < 0.15


@claim(
    evidence="causal",
    source="the question why one dilution for all tokens costs so much",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=FINDS_POSITIONS,
)
def test_later_layers_allow_for_each_token_diluting_BOS_by_its_own_a(subject, measure):
    """With the median token's attention for all, a token is decoded where its own `a` puts that attention."""
    with_one = subject.run(decoded_position.shift_by_dilution, one_for_all=True)
    assert measure("slope of the decoded shift on the predicted one, one a for all", with_one) > 0.5


@claim(
    evidence="causal",
    source="the law of dilution: 2a/(2a+i-1)",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, CLOCK],
    scope=FINDS_POSITIONS,
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
    scope=FINDS_POSITIONS,
)
def test_only_the_value_of_BOS_tells_positions_apart(subject, measure):
    """Layer 0's values of all other tokens may be one and the same: positions are decoded, and late answers stay."""
    others, bos = (subject.run(decoded_position.with_values_averaged, keys=keys).error for keys in ("others", "BOS"))
    late = subject.run(effect_of_averaging_values, keys="others").changed_by_tenth[HALF:]
    assert measure("error of decoded positions, other tokens' values averaged", others, "positions") < 1.5
    assert measure("the same, the value of BOS averaged, over the positions", bos / subject.config.n_ctx) > 0.2
    assert measure("most changed in a tenth of the second half, other values averaged", late.max().item()) < 0.2
