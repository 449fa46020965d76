"""Layer 1's scores as a kernel over relative position: how much of them it is, what makes it, what it leaves.

Scores are taken apart within rows, since a softmax does not see what a whole row has in common, and near the query,
where the weight is. `scores_by_law` computes them from the weights and the law of dilution alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from nopos.analysis.attention import Scores, pattern_name
from nopos.analysis.codes import RESIDUAL, residual_by_law
from nopos.analysis.patching import SPACING, Codes, mean_code, random_directions
from nopos.analysis.places import KEYS, LATE, QUERIES
from nopos.analysis.reading import Tokens, activation, activations, require_slots
from nopos.analysis.replacement import Effect, activation_with, effect_of, logits_with
from nopos.config import BOS
from nopos.data import generator, per_token_loss
from nopos.model import NoPosTransformer

NEAR = 5
"""Keys up to so many back are near: about all of the weight is on them."""
SHIFTS = (-6, -3, 3, 6)
"""By how many slots codes are moved."""
SCORES = "blocks.1.attn.hook_attn_scores"

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Shares:
    """Of the variance of late queries' near scores within their rows."""

    position: float
    """The share that is the same in all sequences."""
    distance: float
    """Of that, the share that only the distance from the query makes."""


@dataclass(frozen=True)
class Steps:
    """By how much near scores fall per slot from 1 back on, in the mean over sequences, for each late query."""

    of_scores: Float[Tensor, " query_pos"]
    of_keys: Float[Tensor, " query_pos"]
    """The same keys asked by one query, the mean over late slots."""
    gain: Float[Tensor, " query_pos"]
    """By how much the query's own scores stretch those: the least-squares factor."""

    @property
    def growth(self) -> float:
        """Gain of the last query over that of the first; 0 where that has none."""
        first, last = self.gain[0].item(), self.gain[-1].item()
        return last / first if first else 0.0


def spread(steps: Float[Tensor, " query_pos"]) -> float:
    """Largest less smallest, over the size of the mean; 0 where all are zero."""
    return ((steps.max() - steps.min()) / steps.mean().abs().clamp_min(torch.finfo(steps.dtype).eps)).item()


@dataclass(frozen=True)
class MovedScores:
    """Change of scores, in nats, when codes are moved."""

    said: Float[Tensor, "head move"]
    """By the weights and the law."""
    found: Float[Tensor, "head move"]
    random: Float[Tensor, "head move"]
    """With random directions of the same norms."""

    @property
    def explained(self) -> float:
        """Share of the sum of squares of the changes that what was said gets right."""
        return _share(self.said, self.found)

    def slope(self, change: Float[Tensor, "head move"]) -> float:
        """Of a change on what was said: 1 where each is as said."""
        return ((self.said * change).sum() / self.said.pow(2).sum().clamp_min(_TINY)).item()


def near(scores: Scores, *, first: int = 0) -> Float[Tensor, "batch head late offset"]:
    """Scores of late queries by offset, from `first` to NEAR back, less each row's mean.

    Raises:
        AnalysisError: no query is late.
    """
    require_slots(scores[0, 0], LATE + 1)
    by_offset = torch.stack(
        [scores.diagonal(-offset, dim1=-2, dim2=-1)[..., LATE - offset :] for offset in range(first, NEAR + 1)], dim=-1
    )
    return by_offset - by_offset.mean(dim=-1, keepdim=True)


def score_shares(model: NoPosTransformer, tokens: Tokens) -> Shares:
    """What position explains of layer 1's near scores, and distance of that."""
    return shares(near(activation(model, tokens, SCORES)))


def shares(scores: Float[Tensor, "batch head late offset"]) -> Shares:
    """Of scores as `near` gives them."""
    by_slot = scores.mean(dim=0)
    by_offset = reduce(by_slot, "head late offset -> head 1 offset", "mean").expand_as(by_slot)
    return Shares(_share(by_slot.expand_as(scores), scores), _share(by_offset, by_slot))


def score_steps(model: NoPosTransformer, tokens: Tokens) -> Steps:
    """How layer 1's scores fall from 1 back on, and how its keys' do when one query is asked of all."""
    read = activations(model, tokens, [SCORES, QUERIES, KEYS])
    query = read[QUERIES][:, LATE:].mean(dim=(0, 1), keepdim=True)
    scores = near(read[SCORES].mean(dim=0, keepdim=True), first=1)
    asked_by_one = _products(query.expand_as(read[QUERIES]), read[KEYS]).mean(dim=0, keepdim=True)
    keys = near(asked_by_one / model.block(1).attn.scale, first=1)
    gain = (scores * keys).sum(dim=-1) / keys.pow(2).sum(dim=-1).clamp_min(_TINY)
    return Steps(_per_slot(scores), _per_slot(keys), reduce(gain, "1 head late -> late", "mean"))


def match_with_own_token(model: NoPosTransformer, tokens: Tokens) -> float:
    """What a late query's score of its own slot gains because query and key are of one token, in nats.

    The mean of query times key less the product of their means, at the own slot, less the same at the next few back.
    """
    read = activations(model, tokens, [QUERIES, KEYS])
    q, k = read[QUERIES], read[KEYS]
    together = _products(q, k).mean(dim=0) - _products(q.mean(0, keepdim=True), k.mean(0, keepdim=True))[0]
    by_offset = reduce(near(together[None]), "1 head late offset -> offset", "mean") / model.block(1).attn.scale
    return (by_offset[0] - by_offset[1:].mean()).item()


@torch.no_grad()
def scores_by_law(
    folded: NoPosTransformer, *, pos: int, own_token: bool = True
) -> Float[Tensor, "head query_pos key_pos"]:
    """Layer 1's mean scores from the weights and the law of dilution alone, no sequence being read.

    Args:
        pos: of how many slots.
        own_token: know that query and key are of one token where they are of one slot; otherwise of any two.
    """
    attention, normalized = folded.block(1).attn, folded.block(1).ln1(residual_by_law(folded)[BOS + 1 :, :pos])
    project = "token slot d_model, head d_model d_head -> token slot head d_head"
    q = einsum(normalized, attention.W_Q, project) + attention.b_Q
    k = einsum(normalized, attention.W_K, project) + attention.b_K
    scores = _products(q.mean(dim=0, keepdim=True), k.mean(dim=0, keepdim=True))[0]
    if own_token:
        own = einsum(q, k, "token slot head d_head, token slot head d_head -> head slot") / len(q)
        scores.diagonal(dim1=-2, dim2=-1)[:] = own
    permitted = attention.permitted[:pos, :pos]
    return (scores / attention.scale).masked_fill(~permitted, -torch.inf)


def effect_of_scores_by_law(
    model: NoPosTransformer, tokens: Tokens, *, twin: NoPosTransformer, own_token: bool = True
) -> Effect:
    """Effect of replacing layer 1's scores by those of the weights and the law, the same for all sequences.

    Args:
        twin: the folded model that the scores are computed from.
        own_token: as in `scores_by_law`.
    """
    scores = scores_by_law(twin, pos=tokens.shape[-1], own_token=own_token).float()
    return effect_of(model, tokens, SCORES, lambda _: scores)


def share_explained_by_law(
    model: NoPosTransformer, tokens: Tokens, *, twin: NoPosTransformer, own_token: bool = True
) -> float:
    """Share of the mean near scores' sum of squares within rows that `scores_by_law` gets right.

    Args:
        twin: the folded model that the scores are computed from.
        own_token: as in `scores_by_law`.
    """
    found = near(activation(model, tokens, SCORES).mean(dim=0, keepdim=True))
    lawful = scores_by_law(twin, pos=tokens.shape[-1], own_token=own_token)
    return _share(near(lawful.to(found)[None]), found)


@torch.no_grad()
def moved_scores(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens, twin: NoPosTransformer
) -> MovedScores:
    """Put another slot's mean code into some slots' residuals after layer 0, and see later queries' scores of them.

    Args:
        other_tokens: what the mean codes are taken over.
        twin: the folded model, whose weights and law say what each score should become.
    """
    require_slots(tokens, LATE + SPACING + 3)
    before = activation(model, tokens, SCORES)
    codes, lawful = mean_code(model, other_tokens, hook_point=RESIDUAL), scores_by_law(twin, pos=tokens.shape[-1])
    slots = torch.arange(LATE, tokens.shape[-1] - SPACING - 2, SPACING)
    queries = slots + SPACING + 2  # between the moved slots, and after wherever these are moved to
    source = generator("random directions", 0)

    def change(added: Codes) -> Tensor:
        after = activation_with(model, tokens, SCORES, {RESIDUAL: lambda residual: residual + added})
        return (after - before)[:, :, queries, slots].mean(dim=0)

    said, found, random = [], [], []
    for shift in SHIFTS:
        added = torch.zeros_like(codes)
        added[slots] = codes[slots + shift] - codes[slots]
        said.append((lawful[:, queries, slots + shift] - lawful[:, queries, slots]).float())
        found.append(change(added))
        random.append(change(random_directions(added, source)))
    return MovedScores(torch.cat(said, dim=-1), torch.cat(found, dim=-1), torch.cat(random, dim=-1))


@dataclass(frozen=True)
class Tilts:
    """For each answer from slot 2 on: what content in layer 1's scores does to it."""

    harm: Float[Tensor, "batch answer"]
    """Loss of the model less that with layer 1's mean pattern, in nats."""
    tilt: Float[Tensor, "batch answer"]
    """Logarithm of the weight on the previous token over that on the one 2 back, less that in the mean pattern."""

    @property
    def share_of_harm_tilted_away(self) -> float:
        """Of all harm, that in the half of the answers which are tilted most from the previous token; 0 of none."""
        by_tilt = self.harm.flatten()[self.tilt.flatten().argsort()]
        total = by_tilt.sum().item()
        return by_tilt[: len(by_tilt) // 2].sum().item() / total if total > 0 else 0.0


@torch.no_grad()
def tilts(model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens) -> Tilts:
    """What content in layer 1's scores does to each answer, against layer 1's mean pattern.

    Args:
        other_tokens: what the mean pattern is taken over.
    """
    name = pattern_name(1)
    mean = activation(model, other_tokens, name).mean(dim=0)
    own = activation(model, tokens, name)
    with_mean = logits_with(model, tokens, {name: lambda _: mean})
    harm = per_token_loss(model(tokens), tokens) - per_token_loss(with_mean, tokens)
    return Tilts(harm[:, 1:], _lead_of_previous(own) - _lead_of_previous(mean))


def _lead_of_previous(pattern: Float[Tensor, "*batch head query_pos key_pos"]) -> Float[Tensor, "*batch answer"]:
    one, two = (pattern.diagonal(-offset, dim1=-2, dim2=-1).mean(dim=-2).clamp_min(_TINY).log() for offset in (1, 2))
    return one[..., 1:] - two


def _products(
    q: Float[Tensor, "batch pos head d_head"], k: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "batch head query_pos key_pos"]:
    return einsum(q, k, "batch query_pos head d_head, batch key_pos head d_head -> batch head query_pos key_pos")


def _per_slot(scores: Float[Tensor, "1 head late offset"]) -> Float[Tensor, " late"]:
    """Mean fall from one offset to the next."""
    return reduce(-scores.diff(dim=-1), "1 head late step -> late", "mean")


def _share(part: Float[Tensor, ...], whole: Float[Tensor, ...]) -> float:
    """Of the sum of squares; 0 where there is nothing, or more is missed than there is."""
    there, missed = whole.pow(2).sum().item(), (whole - part).pow(2).sum().item()
    return max(0.0, 1 - missed / there) if there > 0 else 0.0
