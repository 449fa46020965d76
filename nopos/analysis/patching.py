"""Patch a code or a token: does the model act on it, or can it only be read?

A patch that works says little unless another of its size does not: every patched direction is held against random
directions of its norm (Makelov and others, 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nopos.analysis.replacement import logits_with
from nopos.data import generator, per_token_loss
from nopos.model import NoPosTransformer

Tokens = Int[Tensor, "batch pos"]
SPACING = 5
"""Queries are so many slots apart, so that no patch lies in the reach of two of them."""


@torch.no_grad()
def mean_code(model: NoPosTransformer, tokens: Tokens, *, hook_point: str) -> Float[Tensor, "pos d_model"]:
    """The mean activation at each slot: what is left of it when content is averaged away."""
    _, cache = model.run_with_cache(tokens, names_filter=hook_point)
    return cache[hook_point].mean(dim=0)


def exchange_codes(
    codes: Float[Tensor, "pos d_model"], queries: Int[Tensor, " query"], offsets: tuple[int, int]
) -> Float[Tensor, "pos d_model"]:
    """What to add at each slot so that, for each query, the slots at two offsets back exchange their mean codes."""
    first, second = (queries - offset for offset in offsets)
    added = torch.zeros_like(codes)
    added[first] = codes[second] - codes[first]
    added[second] = codes[first] - codes[second]
    return added


@torch.no_grad()
def loss_with_codes_exchanged(
    model: NoPosTransformer,
    tokens: Tokens,
    *,
    other_tokens: Tokens,
    hook_point: str,
    offsets: tuple[int, int],
    target_offset: int,
    direction: Literal["code", "random"] = "code",
) -> float:
    """Loss in nats on the token `target_offset` back, at queries before which two slots have exchanged their codes.

    Args:
        other_tokens: what the mean codes are taken over.
        hook_point: with an activation [batch pos d_model].
        offsets: how far before each query the two slots lie.
        direction: `random` adds, at the same slots, random directions of the same norms.
    """
    codes = mean_code(model, other_tokens, hook_point=hook_point)
    queries = torch.arange(max(offsets) + 1, tokens.shape[-1], SPACING)
    added = exchange_codes(codes, queries, offsets)
    if direction == "random":
        noise = torch.randn(added.shape, generator=generator("random directions", 0)).to(added)
        added = noise * (added.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True))
    logits = logits_with(model, tokens, hook_point, lambda activation: activation + added)
    return per_token_loss(logits, tokens, target_offset=target_offset)[:, queries - target_offset].mean().item()


@dataclass(frozen=True)
class Swaps:
    """One token before each of many queries put in another's place, and what came of it."""

    before: Int[Tensor, " swap"]
    after: Int[Tensor, " swap"]
    response: Float[Tensor, "swap neuron"]
    """Change of the neurons' input at the query."""


@torch.no_grad()
def response_to_swapped_token(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens, layer: int, offset: int
) -> Swaps:
    """How a layer's neurons respond at a query when the token `offset` back is another, and nothing else.

    Args:
        other_tokens: as many as `tokens`; they give the tokens that are put in.
    """
    name = f"blocks.{layer}.mlp.hook_pre"
    queries = torch.arange(offset + 1, tokens.shape[-1], SPACING)
    swapped = tokens.clone()
    swapped[:, queries - offset] = other_tokens[:, queries - offset]
    before, after = (model.run_with_cache(which, names_filter=name)[1][name][:, queries] for which in (tokens, swapped))
    return Swaps(
        tokens[:, queries - offset].flatten(), swapped[:, queries - offset].flatten(), (after - before).flatten(0, 1)
    )
