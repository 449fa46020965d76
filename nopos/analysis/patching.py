"""Patch a code or a token: does the model act on it, or can it only be read?

A patch that works says little unless another of its size does not: every patched direction is held against random
directions of its norm (Makelov and others, 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nopos.analysis.reading import Tokens, activation, require_as_many, require_offset
from nopos.analysis.replacement import logits_with
from nopos.data import generator, per_token_loss
from nopos.errors import AnalysisError
from nopos.model import NoPosTransformer

SPACING = 5
"""Queries are so many slots apart, so that no patch lies in the reach of two of them."""
RANDOM_DRAWS = 10

Codes = Float[Tensor, "pos d_model"]


@dataclass(frozen=True)
class Answers:
    """Mean loss in nats on the tokens at the two offsets, at the patched queries."""

    near: float
    far: float


@dataclass(frozen=True)
class Exchange:
    """What the model answers before the slots at two offsets exchange their mean codes, and after."""

    before: Answers
    exchanged: Answers
    random: tuple[Answers, ...]
    """With random directions of the same norms at the same slots, draw by draw."""


def mean_code(model: NoPosTransformer, tokens: Tokens, *, hook_point: str) -> Codes:
    """The mean activation at each slot: what is left of it when content is averaged away."""
    return activation(model, tokens, hook_point).mean(dim=0)


def exchange_codes(codes: Codes, queries: Int[Tensor, " query"], offsets: tuple[int, int]) -> Codes:
    """What to add at each slot so that, for each query, the slots at two offsets back exchange their mean codes."""
    first, second = (queries - offset for offset in offsets)
    added = torch.zeros_like(codes)
    added[first] = codes[second] - codes[first]
    added[second] = codes[first] - codes[second]
    return added


def random_directions(added: Codes, source: torch.Generator) -> Codes:
    """Directions drawn anew at each slot, of the same norms."""
    noise = torch.randn(added.shape, generator=source).to(added)
    return noise * (added.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True))


def answers_at(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Tokens, queries: Int[Tensor, " query"], offsets: tuple[int, int]
) -> Answers:
    """The answers of some queries, about the tokens at two offsets before each."""
    near, far = (
        per_token_loss(logits, tokens, target_offset=offset)[:, queries - offset].mean().item() for offset in offsets
    )
    return Answers(near, far)


@torch.no_grad()
def effect_of_exchanging_codes(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens, hook_point: str, offsets: tuple[int, int]
) -> Exchange:
    """Let two slots before each of many queries exchange their mean codes, and see which token is answered.

    Args:
        other_tokens: what the mean codes are taken over.
        hook_point: with an activation [batch pos d_model].
        offsets: how far before each query the two slots lie, the nearer first.

    Raises:
        AnalysisError: the offsets are not two, from 1 up to `SPACING` less 1, in this order.
    """
    if not 1 <= offsets[0] <= offsets[1] < SPACING:
        raise AnalysisError(f"offsets are {offsets}; they must rise, and lie from 1 to {SPACING - 1}")
    codes = mean_code(model, other_tokens, hook_point=hook_point)
    queries = torch.arange(offsets[1] + 1, tokens.shape[-1], SPACING)
    code = exchange_codes(codes, queries, offsets)
    source = generator("random directions", 0)

    def answers(added: Codes) -> Answers:
        logits = logits_with(model, tokens, {hook_point: lambda activation: activation + added})
        return answers_at(logits, tokens, queries, offsets)

    return Exchange(
        before=answers(torch.zeros_like(code)),
        exchanged=answers(code),
        random=tuple(answers(random_directions(code, source)) for _ in range(RANDOM_DRAWS)),
    )


@dataclass(frozen=True)
class Swaps:
    """One token in each of many sequences put in another's place, and what came of it."""

    before: Int[Tensor, " swap"]
    after: Int[Tensor, " swap"]
    response: Float[Tensor, "swap neuron"]
    """Change of the neurons' input at the query."""


def response_to_swapped_token(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens, layer: int, offset: int
) -> Swaps:
    """How a layer's neurons respond at one query of each sequence when the token `offset` back is another.

    Args:
        other_tokens: as many as `tokens`; they give the tokens that are put in.
    """
    require_offset(offset, tokens)
    require_as_many(other_tokens, tokens)
    row = torch.arange(len(tokens))
    candidates = torch.arange(offset + 1, tokens.shape[-1])
    query = candidates[row % len(candidates)]
    swapped = tokens.clone()
    swapped[row, query - offset] = other_tokens[row, query - offset]
    name = f"blocks.{layer}.mlp.hook_pre"
    before, after = (activation(model, which, name)[row, query] for which in (tokens, swapped))
    return Swaps(tokens[row, query - offset], swapped[row, query - offset], after - before)
