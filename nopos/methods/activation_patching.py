"""Activation patching: put a clean or another activation into a run. Does the model act on it, or is it only there?

A patch that works says little unless another of its size does not: every patched direction is held against random
directions of its norm (Makelov and others, 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nopos.errors import AnalysisError
from nopos.methods.activations import OtherTokens, Tokens, activation, centred, require_as_many, require_offset
from nopos.methods.interventions import logits_with
from nopos.methods.metrics import largest
from nopos.model.data import generator
from nopos.model.hook_points import hook_point as hook_point_of
from nopos.model.transformer import NoPosTransformer

SPACING = 5
"""Patched queries are so many positions apart, so that no patch lies in the reach of two of them."""
RANDOM_DRAWS = 10

MeanActivation = Float[Tensor, "pos width"]


@dataclass(frozen=True)
class Answers:
    """Shares of the patched queries that answer with the token at either offset."""

    near: float
    far: float


@dataclass(frozen=True)
class SwapEffect:
    """What the model answers before the positions at two offsets swap their mean activations, and after."""

    before: Answers
    swapped: Answers
    random: tuple[Answers, ...]
    """With random directions of the same norms at the same positions, draw by draw."""


def mean_activation(model: NoPosTransformer, tokens: Tokens, *, hook_point: str) -> MeanActivation:
    """The mean activation at each position: what is left of it when content is averaged away."""
    return activation(model, tokens, hook_point).mean(dim=0)


def swap_means(means: MeanActivation, queries: Int[Tensor, " query"], offsets: tuple[int, int]) -> MeanActivation:
    """What to add at each position so that, for each query, those at two offsets back swap their means."""
    first, second = (queries - offset for offset in offsets)
    added = torch.zeros_like(means)
    added[first] = means[second] - means[first]
    added[second] = means[first] - means[second]
    return added


def random_directions(added: Float[Tensor, "pos width"], rng: torch.Generator) -> Float[Tensor, "pos width"]:
    """Directions in the residual stream drawn anew at each position, of the same norms to all that reads them."""
    noise = centred(torch.randn(added.shape, generator=rng).to(added))
    return with_norms_of(noise, centred(added))


def with_norms_of(
    directions: Float[Tensor, "pos width"], others: Float[Tensor, "pos width"]
) -> Float[Tensor, "pos width"]:
    """Each direction, at the length of the other at its position."""
    return directions * (others.norm(dim=-1, keepdim=True) / directions.norm(dim=-1, keepdim=True))


def answers_at(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Tokens, queries: Int[Tensor, " query"], offsets: tuple[int, int]
) -> Answers:
    """The answers of some queries: how often they are the tokens at two offsets before each."""
    answers = largest(logits[:, queries])
    near, far = ((answers == tokens[:, queries - offset]).float().mean().item() for offset in offsets)
    return Answers(near, far)


@torch.no_grad()
def effect_of_swapping_means(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: OtherTokens, hook_point: str, offsets: tuple[int, int]
) -> SwapEffect:
    """Let two positions before each of many queries swap their mean activations, and see which token is answered.

    Args:
        other_tokens: what the means are taken over.
        hook_point: of the residual stream.
        offsets: how far before each query the two positions lie, the nearer first.

    Raises:
        AnalysisError: the offsets are not two, from 1 up to `SPACING` less 1, in this order.
    """
    if not 1 <= offsets[0] <= offsets[1] < SPACING:
        raise AnalysisError(f"offsets are {offsets}; they must rise, and lie from 1 to {SPACING - 1}")
    means = mean_activation(model, other_tokens, hook_point=hook_point)
    queries = torch.arange(offsets[1] + 1, tokens.shape[-1], SPACING)
    swap = swap_means(means, queries, offsets)
    rng = generator("random directions", 0)

    def answers(added: MeanActivation) -> Answers:
        logits = logits_with(model, tokens, {hook_point: lambda activation: activation + added})
        return answers_at(logits, tokens, queries, offsets)

    return SwapEffect(
        before=answers_at(model.logits(tokens), tokens, queries, offsets),
        swapped=answers(swap),
        random=tuple(answers(random_directions(swap, rng)) for _ in range(RANDOM_DRAWS)),
    )


def swap_tokens(
    tokens: Tokens, other_tokens: OtherTokens, positions: Int[Tensor, " batch"]
) -> Int[Tensor, "batch pos"]:
    """The sequences, each with another's token at one position of its own.

    Raises:
        AnalysisError: there are fewer other sequences, or of another length.
    """
    require_as_many(other_tokens, tokens)
    row = torch.arange(len(tokens))
    swapped = tokens.clone()
    swapped[row, positions] = other_tokens[row, positions]
    return swapped


@dataclass(frozen=True)
class TokenSwaps:
    """One token in each of many sequences swapped for another, and what came of it."""

    before: Int[Tensor, " swap"]
    after: Int[Tensor, " swap"]
    response: Float[Tensor, "swap neuron"]
    """Change of the neurons' input at the query."""


def response_to_swapped_token(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: OtherTokens, layer: int, offset: int
) -> TokenSwaps:
    """How a layer's neurons respond at one query of each sequence when the token `offset` back is another.

    Args:
        other_tokens: as many as `tokens`; they give the tokens that are put in.
    """
    require_offset(offset, tokens)
    row = torch.arange(len(tokens))
    candidates = torch.arange(offset + 1, tokens.shape[-1])
    query = candidates[row % len(candidates)]
    swapped = swap_tokens(tokens, other_tokens, query - offset)
    pre = hook_point_of(layer, "mlp.pre")
    before, after = (activation(model, which, pre)[row, query] for which in (tokens, swapped))
    return TokenSwaps(tokens[row, query - offset], swapped[row, query - offset], after - before)
