"""Attention patterns (notebook, steps 5 and 6): where attention goes by distance, and what happens when it may not.

An offset is how many slots back a key lies from its query: 0 is the query's own slot, 1 the previous token.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nopos.analysis.replacement import loss_with
from nopos.model import NoPosTransformer

Pattern = Float[Tensor, "batch head query_pos key_pos"]


def pattern_name(layer: int) -> str:
    """The hook point of a layer's attention pattern."""
    return f"blocks.{layer}.attn.hook_pattern"


def cut(pattern: Pattern, offset: int) -> Pattern:
    """The pattern with no weight on one offset, each row renormalised; a row with nothing else to see stays."""
    keys = pattern.shape[-1]
    kept = pattern.masked_fill(_at_offset(keys, offset, pattern.device), 0.0)
    total = kept.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp_min(torch.finfo(kept.dtype).tiny), pattern)


def keep_only(pattern: Pattern, offset: int) -> Pattern:
    """All of each row's weight on one offset; a row too early to have it stays."""
    keys = pattern.shape[-1]
    at_offset = _at_offset(keys, offset, pattern.device)
    return torch.where(at_offset.any(dim=-1, keepdim=True), at_offset.to(pattern.dtype), pattern)


def loss_with_cut(model: NoPosTransformer, tokens: Int[Tensor, "batch pos"], *, layer: int, offset: int) -> float:
    """Loss in nats when no query of a layer may see the key `offset` back."""
    return loss_with(model, tokens, pattern_name(layer), lambda pattern: cut(pattern, offset))


def loss_keeping_only(model: NoPosTransformer, tokens: Int[Tensor, "batch pos"], *, layer: int, offset: int) -> float:
    """Loss in nats when every query of a layer sees the key `offset` back and nothing else."""
    return loss_with(model, tokens, pattern_name(layer), lambda pattern: keep_only(pattern, offset))


@torch.no_grad()
def strongest_offset_share(
    model: NoPosTransformer, tokens: Int[Tensor, "batch pos"], *, layer: int, offset: int
) -> float:
    """Share of query rows, of those that have the offset, whose largest weight over all heads lies on it."""
    _, cache = model.run_with_cache(tokens, names_filter=pattern_name(layer))
    strongest_key = cache[pattern_name(layer)].argmax(dim=-1)[..., offset:]  # [batch head query_pos]
    query = torch.arange(offset, tokens.shape[-1], device=tokens.device)
    return (query - strongest_key == offset).float().mean().item()


def _at_offset(keys: int, offset: int, device: torch.device) -> Bool[Tensor, "query_pos key_pos"]:
    position = torch.arange(keys, device=device)
    return position[:, None] - position[None, :] == offset
