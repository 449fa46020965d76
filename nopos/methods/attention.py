"""Attention patterns (notebook, steps 5 and 6): where attention goes by distance, and what happens when it may not.

An offset is how many positions back a key lies from its query: 0 is the query's own position, 1 the previous token.
"""

from __future__ import annotations

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from nopos.methods.activations import Tokens, activation, require_offset
from nopos.methods.interventions import Effect, effect_of
from nopos.model.hook_points import hook_point
from nopos.model.transformer import NoPosTransformer

LATE = 10
"""Queries from this position on are late: the attention of earlier ones lies on BOS for want of keys."""

Scores = Float[Tensor, "batch head query_pos key_pos"]
Pattern = Float[Tensor, "batch head query_pos key_pos"]


def mean_late_query(q: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "head d_head"]:
    """The one query that is asked of all keys where only they are to differ: the mean over late positions."""
    return q[:, LATE:].mean(dim=(0, 1))


def knock_out(scores: Scores, offset: int) -> Scores:
    """The scores with one offset at −∞, so that the rest of each row is renormalised however little it weighs.

    A row with nothing else to see stays.
    """
    at_offset = _at_offset(scores.shape[-1], offset, scores.device)
    masked = scores.masked_fill(at_offset, -torch.inf)
    return torch.where(masked.isfinite().any(dim=-1, keepdim=True), masked, scores)


def keep_only(pattern: Pattern, offset: int) -> Pattern:
    """All of each row's weight on one offset; a row too early to have it stays."""
    keys = pattern.shape[-1]
    at_offset = _at_offset(keys, offset, pattern.device)
    return torch.where(at_offset.any(dim=-1, keepdim=True), at_offset.to(pattern.dtype), pattern)


def average_bos_key(k: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
    """Position 0's key replaced by the mean of the sequence's other keys: scores no longer tell BOS from a token."""
    return torch.cat([k[:, 1:].mean(dim=1, keepdim=True), k[:, 1:]], dim=1)


def effect_of_averaging_bos_key(
    model: NoPosTransformer, tokens: Tokens, *, layer: int, target_offset: int = 1
) -> Effect:
    """Effect of making a layer's key of BOS like any other's."""
    return effect_of(model, tokens, hook_point(layer, "attn.k"), average_bos_key, target_offset=target_offset)


def effect_of_knock_out(
    model: NoPosTransformer, tokens: Tokens, *, layer: int, offset: int, target_offset: int = 1
) -> Effect:
    """Effect of hiding the key `offset` back from all queries of a layer."""
    require_offset(offset, tokens)
    scores = hook_point(layer, "attn.attn_scores")
    return effect_of(model, tokens, scores, lambda each: knock_out(each, offset), target_offset=target_offset)


def effect_of_keeping_only(
    model: NoPosTransformer, tokens: Tokens, *, layer: int, offset: int, target_offset: int = 1
) -> Effect:
    """Effect of giving all queries of a layer the key `offset` back and nothing else."""
    require_offset(offset, tokens)
    pattern = hook_point(layer, "attn.pattern")
    return effect_of(model, tokens, pattern, lambda each: keep_only(each, offset), target_offset=target_offset)


def patterns(model: NoPosTransformer, tokens: Tokens, *, layer: int) -> Pattern:
    """Where each query's attention goes, sequence by sequence."""
    return activation(model, tokens, hook_point(layer, "attn.pattern"))


def mean_pattern(model: NoPosTransformer, tokens: Tokens, *, layer: int) -> Float[Tensor, "query_pos key_pos"]:
    """The pattern's mean over sequences and heads, as the notebook plots it."""
    return reduce(patterns(model, tokens, layer=layer), "batch head query_pos key_pos -> query_pos key_pos", "mean")


def mean_weight_by_offset(model: NoPosTransformer, tokens: Tokens, *, layer: int) -> Float[Tensor, " offset"]:
    """Mean weight on the key so many positions back, over the queries that have one."""
    pattern = mean_pattern(model, tokens, layer=layer)
    return torch.stack([pattern.diagonal(-offset).mean() for offset in range(len(pattern))])


def strongest_offset_share(model: NoPosTransformer, tokens: Tokens, *, layer: int, offset: int) -> float:
    """Share of rows, over heads and the queries that have the offset, whose largest weight lies on it."""
    require_offset(offset, tokens)
    strongest_key = patterns(model, tokens, layer=layer).argmax(dim=-1)[..., offset:]  # [batch head query_pos]
    query = torch.arange(offset, tokens.shape[-1], device=tokens.device)
    return (query - strongest_key == offset).float().mean().item()


def _at_offset(keys: int, offset: int, device: torch.device) -> Bool[Tensor, "query_pos key_pos"]:
    position = torch.arange(keys, device=device)
    return position[:, None] - position[None, :] == offset
