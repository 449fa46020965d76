"""Read activations off a model, and refuse in one line what it cannot be asked."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from nopos.errors import AnalysisError
from nopos.model.transformer import NoPosTransformer

Tokens = Int[Tensor, "batch pos"]
OtherTokens = Int[Tensor, "other_batch other_pos"]
"""Sequences that a mean, a probe or a patch is taken from: they need not be as many as those that are analysed."""


def activation(model: NoPosTransformer, tokens: Tokens, hook_point: str) -> Float[Tensor, "batch ..."]:
    """What passes one hook point; see `NoPosTransformer.activations` for several.

    Raises:
        AnalysisError: the model has no such hook point.
    """
    return model.activations(tokens, [hook_point])[hook_point]


def centred(written: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """What is written to the residual stream, less its mean over d_model, which every LayerNorm subtracts.

    The rest is what any later part of the model can read: without it a direction that nothing sees would be measured.
    """
    return written - written.mean(dim=-1, keepdim=True)


def require_offset(offset: int, tokens: Tokens) -> None:
    """Raise AnalysisError unless some position lies so many before another."""
    if not 0 <= offset < tokens.shape[-1]:
        raise AnalysisError(
            f"offset is {offset}; with sequences of {tokens.shape[-1]} it is 0 to {tokens.shape[-1] - 1}"
        )


def require_as_many(other_tokens: OtherTokens, tokens: Tokens) -> None:
    """Raise AnalysisError unless there are at least as many other sequences, and as long."""
    if len(other_tokens) < len(tokens) or other_tokens.shape[-1] != tokens.shape[-1]:
        raise AnalysisError(
            f"other_tokens are {list(other_tokens.shape)}; they must be at least as many as the tokens, "
            f"{list(tokens.shape)}, and as long"
        )


def require_positions(length: int, *, at_least: int) -> None:
    """Raise AnalysisError unless sequences are long enough."""
    if length < at_least:
        raise AnalysisError(f"sequences have {length} positions; this analysis needs at least {at_least}")


def require_count(name: str, value: int, *, at_most: int) -> None:
    """Raise AnalysisError unless the number is from 0 to what there is."""
    if not 0 <= value <= at_most:
        raise AnalysisError(f"{name} is {value}; it is 0 to {at_most}")
