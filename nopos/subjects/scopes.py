"""What the claims presuppose of a model's sizes: a claim says nothing of a model that lacks it."""

from __future__ import annotations

from nopos.claims.scope import Scope
from nopos.mechanism.position_code import PLANE
from nopos.mechanism.reading import effect_without_position_of
from nopos.methods.activations import OtherTokens, Tokens
from nopos.methods.attention import LATE
from nopos.methods.interventions import Effect
from nopos.methods.metrics import TENTHS
from nopos.model.config import BOS
from nopos.model.hook_points import hook_point
from nopos.model.transformer import NoPosTransformer
from nopos.subjects.subject import Subject

POSITIONS = 2 * LATE + 1
"""So many that there are late ones, and as many behind them."""
HALF = 0.5
TOKENS = BOS + 3
"""BOS and two others, which can differ."""


def _second_layer(subject: Subject) -> bool:
    return subject.config.n_layers >= 2


def _two_layers(subject: Subject) -> bool:
    return subject.config.n_layers == 2


def _positions(subject: Subject) -> bool:
    return subject.config.n_ctx >= POSITIONS


def _directions(subject: Subject) -> bool:
    return subject.config.d_model >= PLANE


def _tokens(subject: Subject) -> bool:
    return subject.config.d_vocab >= TOKENS


ATTENTION_0, MLP_0 = hook_point(0, "attn_out"), hook_point(0, "mlp_out")


def late_answers_without_position_of(subject: Subject, *components: str) -> float:
    """Least share of answers changed in a tenth of the second half of the positions, where layer 1's queries and keys
    lack what some components write of the position; on the tokens that claims take means from.
    """
    late = subject.run(_on_other_tokens, components=components).changed_by_tenth[TENTHS // 2 :]
    return late.min().item()


def _on_other_tokens(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: OtherTokens, components: tuple[str, ...]
) -> Effect:
    return effect_without_position_of(model, other_tokens, other_tokens=tokens, components=components)


def _is_large_enough(subject: Subject) -> bool:
    """Whether it can be asked what layer 1 reads; of a model that is not, its size is reason enough."""
    return _second_layer(subject) and _positions(subject)


def _finds_positions(subject: Subject) -> bool:
    return not _is_large_enough(subject) or late_answers_without_position_of(subject, ATTENTION_0, MLP_0) > HALF


def _reads_code(subject: Subject) -> bool:
    if not _is_large_enough(subject):
        return True
    without_code, without_count = (late_answers_without_position_of(subject, each) for each in (MLP_0, ATTENTION_0))
    return without_code > without_count


def _certain(subject: Subject) -> bool:
    return subject.task.certain


CERTAIN = (Scope("one token to be all that was asked for", _certain),)
"""Of the claim that the model is: where labels are smoothed or targets noised, it was trained not to be."""
TWO_OR_MORE_LAYERS = (
    Scope("a second layer", _second_layer),
    Scope(f"{POSITIONS} positions or more", _positions),
    Scope(f"{TOKENS} tokens or more", _tokens),
    Scope(f"d_model {PLANE} or more", _directions),
)
"""Of the claims on the mechanism: a layer that counts and one that reads it, positions and tokens to tell apart."""
TWO_LAYERS = (*TWO_OR_MORE_LAYERS, Scope("two layers, no more", _two_layers))
"""Of those that speak of layer 1 as the last one, from which the answer is read."""
FINDS_POSITIONS = (
    *TWO_OR_MORE_LAYERS,
    Scope("layer 1 to find positions by what layer 0 writes of them", _finds_positions),
)
"""Of those on count, code and kernel: without that the answers come from something else."""
IN_TWO_LAYERS = (*FINDS_POSITIONS, Scope("two layers, no more", _two_layers))
"""Of those that speak of layer 1 as the last one too."""
SURE_IN_TWO_LAYERS = (*IN_TWO_LAYERS, *CERTAIN)
"""Of those on a linear account of the answers, which holds to within what they lead by."""
READS_CODE = (*FINDS_POSITIONS, Scope("layer 1 to read MLP 0's position more than attention 0's", _reads_code))
"""Of those on what MLP 0 adds to the count."""
