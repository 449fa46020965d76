"""What the claims presuppose of a model's sizes: a claim says nothing of a model that lacks it."""

from __future__ import annotations

from nopos.claims.scope import Scope
from nopos.mechanism.position_code import PLANE
from nopos.methods.attention import LATE
from nopos.model.config import BOS
from nopos.subjects.subject import Subject

POSITIONS = 2 * LATE + 1
"""So many that there are late ones, and as many behind them."""
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


TWO_OR_MORE_LAYERS = (
    Scope("a second layer", _second_layer),
    Scope(f"{POSITIONS} positions or more", _positions),
    Scope(f"{TOKENS} tokens or more", _tokens),
    Scope(f"d_model {PLANE} or more", _directions),
)
"""Of the claims on the mechanism: a layer that counts and one that reads it, positions and tokens to tell apart."""
TWO_LAYERS = (*TWO_OR_MORE_LAYERS, Scope("two layers, no more", _two_layers))
"""Of those that speak of layer 1 as the last one, from which the answer is read."""
