"""Layer 1's scores as a kernel over relative position: how much of them it is, what makes it, what it leaves.

Scores are taken apart within rows, since a softmax does not see what a whole row has in common, and near the query,
where the weight is. `scores_from_weights` computes them from the weights and the law of dilution alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from nopos.mechanism.layer_0_table import residual_table
from nopos.methods.activations import Tokens, activation, require_positions
from nopos.methods.attention import LATE, Scores, mean_late_query
from nopos.methods.interventions import Effect, effect_of
from nopos.methods.statistics import share_explained
from nopos.model.config import BOS
from nopos.model.hook_points import hook_point
from nopos.model.transformer import NoPosTransformer

NEAR = 5
"""Keys up to so many back are near: about all of the weight is on them."""

NearScores = Float[Tensor, "batch head late offset"]


@dataclass(frozen=True)
class Shares:
    """Of the variance of late queries' near scores within their rows."""

    position: float
    """The share that is the same in all sequences."""
    distance: float
    """Of that, the share that only the distance from the query makes."""


@dataclass(frozen=True)
class ScoreFalls:
    """By how much near scores fall per position from 1 back on, in the mean over sequences, for each late query."""

    of_scores: Float[Tensor, " late"]
    of_keys: Float[Tensor, " late"]
    """The same keys asked by one query, the mean over late positions."""


def near(scores: Scores, *, first: int = 0) -> NearScores:
    """Scores of late queries by offset, from `first` to NEAR back, less each row's mean.

    Raises:
        AnalysisError: no query is late.
    """
    require_positions(scores.shape[-1], at_least=LATE + 1)
    by_offset = torch.stack(
        [scores.diagonal(-offset, dim1=-2, dim2=-1)[..., LATE - offset :] for offset in range(first, NEAR + 1)], dim=-1
    )
    return by_offset - by_offset.mean(dim=-1, keepdim=True)


def score_shares(model: NoPosTransformer, tokens: Tokens, *, layer: int = 1) -> Shares:
    """What position explains of a layer's near scores, and distance of that."""
    return shares(near(_scores(model, tokens, layer)))


def shares(scores: NearScores) -> Shares:
    """Of scores as `near` gives them."""
    by_position = scores.mean(dim=0)
    by_offset = reduce(by_position, "head late offset -> head 1 offset", "mean").expand_as(by_position)
    return Shares(share_explained(by_position.expand_as(scores), scores), share_explained(by_offset, by_position))


def score_falls(model: NoPosTransformer, tokens: Tokens, *, layer: int = 1) -> ScoreFalls:
    """How a layer's scores fall from 1 back on, and how its keys' do when one query is asked of all."""
    names = [hook_point(layer, f"attn.{name}") for name in ("attn_scores", "q", "k")]
    own_scores, q, k = model.activations(tokens, names).values()
    query = mean_late_query(q)
    scores = near(own_scores.mean(dim=0, keepdim=True), first=1)
    asked_by_one = _products(query.expand_as(q), k).mean(dim=0, keepdim=True)
    keys = near(asked_by_one / model.block(layer).attn.scale, first=1)
    return ScoreFalls(_falls(scores), _falls(keys))


@torch.no_grad()
def scores_from_weights(
    folded: NoPosTransformer, *, pos: int, own_token: bool = True
) -> Float[Tensor, "head query_pos key_pos"]:
    """Layer 1's mean scores from the weights and the law of dilution alone, no sequence being read.

    Args:
        pos: of how many positions.
        own_token: know that query and key are of one token where they are at one position; otherwise of any two.
    """
    of_any, of_one = folded.of_weights(_scores_by_position)
    scores = of_any[:, :pos, :pos].clone()
    if own_token:
        scores.diagonal(dim1=-2, dim2=-1)[:] = of_one[:, :pos]
    attention = folded.block(1).attn
    return (scores / attention.scale).masked_fill(~attention.permitted[:pos, :pos], -torch.inf)


def effect_of_scores_from_weights(
    model: NoPosTransformer,
    tokens: Tokens,
    *,
    folded: NoPosTransformer,
    own_token: bool = True,
    target_offset: int = 1,
) -> Effect:
    """Effect of replacing layer 1's scores by those of the weights and the law, the same for all sequences.

    Args:
        folded: the folded model that the scores are computed from.
        own_token: as in `scores_from_weights`.
    """
    scores = scores_from_weights(folded, pos=tokens.shape[-1], own_token=own_token).float()
    return effect_of(model, tokens, hook_point(1, "attn.attn_scores"), lambda _: scores, target_offset=target_offset)


def share_explained_by_weights(
    model: NoPosTransformer, tokens: Tokens, *, folded: NoPosTransformer, own_token: bool = True
) -> float:
    """Share of the mean near scores' sum of squares within rows that `scores_from_weights` gets right.

    Args:
        folded: the folded model that the scores are computed from.
        own_token: as in `scores_from_weights`.
    """
    observed = near(_scores(model, tokens, layer=1).mean(dim=0, keepdim=True))
    predicted = scores_from_weights(folded, pos=tokens.shape[-1], own_token=own_token)
    return share_explained(near(predicted.to(observed)[None]), observed)


def _scores(model: NoPosTransformer, tokens: Tokens, layer: int) -> Scores:
    return activation(model, tokens, hook_point(layer, "attn.attn_scores"))


@torch.no_grad()
def _scores_by_position(
    folded: NoPosTransformer,
) -> tuple[Float[Tensor, "head query_pos key_pos"], Float[Tensor, "head pos"]]:
    """Layer 1's mean products of query and key, undivided: for any two tokens; and at one position, for one token."""
    attention, normalized = folded.block(1).attn, folded.block(1).ln1(folded.of_weights(residual_table)[BOS + 1 :])
    project = "token pos d_model, head d_model d_head -> token pos head d_head"
    q = einsum(normalized, attention.W_Q, project) + attention.b_Q
    k = einsum(normalized, attention.W_K, project) + attention.b_K
    of_one = einsum(q, k, "token pos head d_head, token pos head d_head -> head pos") / len(q)
    return _products(q.mean(dim=0, keepdim=True), k.mean(dim=0, keepdim=True))[0], of_one


def _products(
    q: Float[Tensor, "batch pos head d_head"], k: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "batch head pos pos"]:
    return einsum(q, k, "batch query_pos head d_head, batch key_pos head d_head -> batch head query_pos key_pos")


def _falls(scores: Float[Tensor, "1 head late offset"]) -> Float[Tensor, " late"]:
    """Mean fall from one offset to the next."""
    return reduce(-scores.diff(dim=-1), "1 head late fall -> late", "mean")
