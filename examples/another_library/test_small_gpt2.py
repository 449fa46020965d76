"""Two claims about a small GPT-2 that gives the previous token."""

from nopos import claim
from small_gpt2 import NO_CAUSAL_MASK, TWO_TOKENS, UNTRAINED, accuracy_without, largest_change_by_a_later_token


@claim(evidence="behavioural", source="this example", refuted_by=[NO_CAUSAL_MASK])
def test_no_answer_depends_on_a_later_token(subject, measure):
    """When the last token is another, no probability at an earlier position changes."""
    change = subject.run(largest_change_by_a_later_token)
    assert measure("largest change of an earlier probability", change) < 0.01


@claim(evidence="causal", source="this example", refuted_by=[UNTRAINED, TWO_TOKENS])
def test_the_answer_needs_attention_to_the_previous_token(subject, measure):
    """Without its attention one position back the model guesses; without that two positions back it does as well."""
    assert measure("accuracy without attention one back", subject.run(accuracy_without, offset=1)) < 0.1
    assert measure("accuracy without attention two back", subject.run(accuracy_without, offset=2)) > 0.9
