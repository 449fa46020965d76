"""A two-layer model continues a repeated sequence by an induction circuit (Olsson et al. 2022)."""

from analyses import (
    answers_by_content,
    answers_by_key,
    answers_by_lag,
    answers_lost_by_distance,
    answers_lost_without_answer,
    answers_right,
    attention_back,
    attention_to_answer,
)
from nopos import claim
from subjects import ANOTHER_SEQUENCE, FIXED_LAG, ONE_LAYER, UNTRAINED

SOURCE = "Olsson et al. 2022, In-context Learning and Induction Heads"


@claim(evidence="behavioural", source=SOURCE, refuted_by=[UNTRAINED, ONE_LAYER, ANOTHER_SEQUENCE])
def test_a_repeated_random_sequence_is_predicted(subject, measure):
    """When random tokens are repeated, each token after the first of the repetition is predicted."""
    assert measure("share of answers right", subject.run(answers_right)) > 0.99


@claim(evidence="causal", source=SOURCE, refuted_by=[UNTRAINED, ONE_LAYER, FIXED_LAG])
def test_layer_0_must_look_one_back(subject, measure):
    """Layer 0 has a head that looks one back, and without its attention one back the prediction is destroyed.

    Without its attention at any other single distance nearly all answers stay right.
    """
    lost = subject.run(answers_lost_by_distance, layer=0)
    further = [share for distance, share in lost.items() if distance != 1]
    assert measure("most attention of a head one back", max(subject.run(attention_back, layer=0, distance=1))) > 0.75
    assert measure("answers lost without one back", lost[1]) > 0.95
    assert measure("most answers lost without another distance", max(further)) < 0.05


@claim(
    evidence="causal",
    source=SOURCE,
    refuted_by=[UNTRAINED, ANOTHER_SEQUENCE, FIXED_LAG],
    not_measurable_on=[ONE_LAYER],
)
def test_the_last_layer_must_attend_to_the_token_after_the_previous_occurrence(subject, measure):
    """The last layer attends to the token after the previous occurrence; without that the prediction is destroyed."""
    assert measure("share of the last layer's attention", subject.run(attention_to_answer)) > 0.9
    assert measure("answers lost without it", subject.run(answers_lost_without_answer)) > 0.95


@claim(
    evidence="causal",
    source=SOURCE,
    refuted_by=[UNTRAINED, FIXED_LAG],
    not_measurable_on=[ONE_LAYER],
    refutes="the model looks a fixed number of positions back",
)
def test_the_match_is_by_content_and_not_by_a_fixed_lag(subject, measure):
    """When the earlier copy is rotated, answers follow its content and not the distance at which it stood before.

    When only what the last layer's keys are made of is rotated, answers follow the keys.
    """
    assert measure("share of answers that follow the content", subject.run(answers_by_content)) > 0.95
    assert measure("share of answers that follow the lag", subject.run(answers_by_lag)) < 0.01
    assert measure("share of answers that follow the keys", subject.run(answers_by_key)) > 0.95
