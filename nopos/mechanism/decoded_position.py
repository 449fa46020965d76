"""The decoded position: where layer 1's keys put a position, and what moves it.

Layer 1 finds a position by the scores of its key. The mean query of each late position is asked of a key: where these
scores lie on the curve of those of the mean keys, position by position, is the key's decoded position. So it is what
layer 1 acts on, in positions, not what a probe can read. Counts are put in by hand through layer 0's pattern, by the
law of dilution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from nopos.errors import AnalysisError
from nopos.mechanism.count import (
    PATTERN,
    VALUES,
    Keys,
    average_values,
    dilution_of_queries,
    mean_value,
    median_dilution,
    pattern_of_counts,
    true_counts,
)
from nopos.methods.activation_patching import SPACING, Answers, answers_at
from nopos.methods.activations import OtherTokens, Tokens, require_positions
from nopos.methods.attention import LATE, Scores
from nopos.methods.interventions import NO_EDITS, Edit, activation_with, logits_with
from nopos.methods.statistics import slope
from nopos.model.config import BOS
from nopos.model.hook_points import hook_point
from nopos.model.transformer import NoPosTransformer


@dataclass(frozen=True)
class Positions:
    """Decoded positions beside those that an account of the model predicts."""

    predicted: Float[Tensor, "#batch asked"]
    observed: Float[Tensor, "batch asked"]

    @property
    def error(self) -> float:
        """Root mean square of the difference over sequences and positions, in positions."""
        return (self.observed - self.predicted).pow(2).mean().sqrt().item()


@dataclass(frozen=True)
class PositionDecoder:
    """What late queries make of a key, and of the keys at each position."""

    keys: str
    """The hook point of the reading layer's keys."""
    queries: Float[Tensor, "late head d_head"]
    """Their mean at each late position."""
    curve: Float[Tensor, "pos_after_BOS score"]
    """The scores that each position's mean key gets from each of them, from position 1 on."""

    @torch.no_grad()
    def decode(
        self, model: NoPosTransformer, tokens: Tokens, edits: Mapping[str, Edit] = NO_EDITS
    ) -> Float[Tensor, "batch pos"]:
        """The decoded position of every position after BOS, from 1 on; position 0 is decoded as 0.

        Args:
            edits: what is replaced in the model while it reads, by hook point.
        """
        decoded = 1 + nearest_on(self.curve, _asked(activation_with(model, tokens, self.keys, edits), self.queries))
        decoded[:, 0] = 0
        return decoded


@torch.no_grad()
def position_decoder(model: NoPosTransformer, tokens: Tokens, *, layer: int = 1) -> PositionDecoder:
    """What a layer's own queries and keys make of positions.

    Raises:
        AnalysisError: no position is late.
    """
    require_positions(tokens.shape[-1], at_least=LATE + 1)
    q, k = model.activations(tokens, [hook_point(layer, "attn.q"), hook_point(layer, "attn.k")]).values()
    queries = q[:, LATE:].mean(dim=0)
    return PositionDecoder(hook_point(layer, "attn.k"), queries, _asked(k.mean(dim=0, keepdim=True), queries)[0, 1:])


def nearest_on(curve: Float[Tensor, "pos width"], points: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape"]:
    """Where on a curve of straight pieces between its points each of some others lies nearest: 0 at the first, and
    between two of them a fraction.
    """
    start, piece = curve[:-1].double(), curve.diff(dim=0).double()
    length = piece.pow(2).sum(dim=-1).clamp_min(torch.finfo(piece.dtype).tiny)
    at = points.double()
    along_piece = einsum(at, piece, "... width, piece width -> ... piece") - (start * piece).sum(dim=-1)
    along = (along_piece / length).clamp(0, 1)
    from_start = einsum(at, start, "... width, piece width -> ... piece")
    distance = start.pow(2).sum(dim=-1) - 2 * from_start + along * (along * length - 2 * along_piece)  # less |at|²
    best = distance.argmin(dim=-1, keepdim=True)
    return (best + along.gather(-1, best))[..., 0].float()


def after_a_second_bos(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: OtherTokens, position: int, layer: int = 1
) -> Positions:
    """Put BOS into a position and see where the later ones are decoded.

    With two BOS the law's 2a/(2a+i-1) is a/(a+n) for a count n of (i-1)/2.

    Args:
        other_tokens: they make the decoder, here and below.
        layer: the one that reads positions, here and below.

    Raises:
        AnalysisError: the position is BOS's own, or no position follows it.
    """
    _require_position_to_change(position, tokens)
    with_two = tokens.clone()
    with_two[:, position] = BOS
    observed = position_decoder(model, other_tokens, layer=layer).decode(model, with_two)
    predicted = (true_counts(tokens)[None, position + 1 :] - 1) / 2
    return Positions(predicted, observed[:, position + 1 :])


def with_bos_weighted(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: OtherTokens, factor: float, layer: int = 1
) -> Positions:
    """Let BOS weigh a factor more in layer 0, by its scores, and see where positions are decoded.

    By the law f·a/(f·a+i) is a/(a+n) for a count n of i/f. Positions are asked whose count is that of one after BOS.

    Raises:
        AnalysisError: the factor is not above zero, or moves every count out of the sequence.
    """
    last = tokens.shape[-1] - 1
    if not 1 / last <= factor <= last:
        raise AnalysisError(f"factor is {factor:g}; in sequences of {last + 1} it is 1/{last} to {last}")

    def weight(scores: Scores) -> Scores:
        return torch.cat([scores[..., :1] + math.log(factor), scores[..., 1:]], dim=-1)

    decoder = position_decoder(model, other_tokens, layer=layer)
    observed = decoder.decode(model, tokens, {hook_point(0, "attn.attn_scores"): weight})
    predicted = true_counts(tokens) / factor
    asked = (predicted >= 1) & (predicted <= last)
    return Positions(predicted[None, asked], observed[:, asked])


def with_the_key_of_bos_elsewhere(
    model: NoPosTransformer,
    tokens: Tokens,
    *,
    other_tokens: OtherTokens,
    folded: NoPosTransformer,
    position: int,
    layer: int = 1,
) -> Positions:
    """Let BOS and another position swap their keys in layer 0, and see where positions are decoded.

    The value of BOS then gets 1/(i+1) in positions before the other, 1/(a+i) from it on, which is a/(a+n) for a count n
    of a·i, of a·(a+i-1). A decoded position cannot lie beyond the last.

    Args:
        folded: the folded model, from which each token's dilution comes, here and below.

    Raises:
        AnalysisError: the position is BOS's own, or no position follows it.
    """
    _require_position_to_change(position, tokens)
    a, i = dilution_of_queries(folded, tokens).mean(dim=1), true_counts(tokens)

    def swap(k: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        swapped = k.clone()
        swapped[:, 0], swapped[:, position] = k[:, position], k[:, 0]
        return swapped

    decoder = position_decoder(model, other_tokens, layer=layer)
    observed = decoder.decode(model, tokens, {hook_point(0, "attn.k"): swap})
    predicted = torch.where(i < position, a * i, a * (a + i - 1)).clamp_max(tokens.shape[-1] - 1)
    return Positions(predicted[:, 1:], observed[:, 1:])


def with_values_averaged(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: OtherTokens, keys: Keys, layer: int = 1
) -> Positions:
    """Give BOS, or every other token, the others' mean value in layer 0: how far are positions from themselves?"""
    edits = {VALUES: average_values(mean_value(model, other_tokens), keys)}
    observed = position_decoder(model, other_tokens, layer=layer).decode(model, tokens, edits)
    return Positions(true_counts(tokens)[None, 1:], observed[:, 1:])


def of_patched_counts(
    model: NoPosTransformer,
    tokens: Tokens,
    *,
    other_tokens: OtherTokens,
    folded: NoPosTransformer,
    counts: tuple[int, ...],
    layer: int = 1,
) -> Positions:
    """Patch one count into every position, and see where the late ones are decoded: at that count, if layer 1 reads it.

    Args:
        counts: those that are put in, one after the other.

    Raises:
        AnalysisError: there is none, or one is no position's count.
    """
    last = tokens.shape[-1] - 1
    if not counts or not all(1 <= count <= last for count in counts):
        raise AnalysisError(f"counts are {counts}; they must be one or more, from 1 to {last}")
    a, decoder = dilution_of_queries(folded, tokens), position_decoder(model, other_tokens, layer=layer)

    def observed(count: int) -> Float[Tensor, "batch late"]:
        pattern = pattern_of_counts(a, torch.full((tokens.shape[-1],), float(count)))
        return decoder.decode(model, tokens, {PATTERN: lambda _: pattern})[:, LATE:]

    predicted = [torch.full((1, last + 1 - LATE), float(count)) for count in counts]
    return Positions(torch.cat(predicted, dim=-1), torch.cat([observed(count) for count in counts], dim=-1))


def shift_by_dilution(
    model: NoPosTransformer,
    tokens: Tokens,
    *,
    other_tokens: OtherTokens,
    folded: NoPosTransformer,
    one_for_all: bool,
    layer: int = 1,
) -> float:
    """How far a position is decoded wrongly for its token's dilution `a`, in terms of i(a/m - 1) with the median's m.

    Later layers that know the token and take the weight on BOS for a/(a+i) decode the count i where it is that, and
    i·a/m where it is m/(m+i). Layers that know no token take it for m/(m+i): they decode i·m/a and i. So the slope
    between the tokens at a position is 0 and, with one `a` for all, 1 for the former; about -1 and 0 for the latter.

    Args:
        one_for_all: give all positions the median token's pattern.
    """
    require_positions(tokens.shape[-1], at_least=2 * LATE + 1)
    asked = slice(LATE, -LATE)  # a decoded position cannot lie beyond the last
    pattern = pattern_of_counts(dilution_of_queries(folded, tokens, one_for_all=one_for_all), true_counts(tokens))
    decoder = position_decoder(model, other_tokens, layer=layer)
    observed = decoder.decode(model, tokens, {PATTERN: lambda _: pattern})[:, asked]
    ratio = (dilution_of_queries(folded, tokens) / median_dilution(folded).float()[:, None]).mean(dim=1)[:, asked]
    misread = true_counts(tokens)[asked] * (ratio - 1)
    return slope(observed - observed.mean(dim=0), on=misread - misread.mean(dim=0))


def answers_to_swapped_counts(
    model: NoPosTransformer, tokens: Tokens, *, folded: NoPosTransformer, offsets: tuple[int, int]
) -> tuple[Answers, Answers]:
    """Let two positions before each of many queries swap their counts: the answers before and after.

    Args:
        offsets: how far before each query the two positions lie; `near` and `far` are the answers about their tokens.
    """
    near, far = offsets
    a, counts = dilution_of_queries(folded, tokens), true_counts(tokens)
    queries = torch.arange(far + 1, tokens.shape[-1], SPACING)
    swapped = counts.clone()
    swapped[queries - near], swapped[queries - far] = counts[queries - far], counts[queries - near]

    def answers(counts: Float[Tensor, " pos"]) -> Answers:
        pattern = pattern_of_counts(a, counts)
        return answers_at(logits_with(model, tokens, {PATTERN: lambda _: pattern}), tokens, queries, offsets)

    return answers(counts), answers(swapped)


def _asked(
    k: Float[Tensor, "batch pos head d_head"], queries: Float[Tensor, "late head d_head"]
) -> Float[Tensor, "batch pos score"]:
    scores = einsum(k, queries, "batch pos head d_head, late head d_head -> batch pos head late")
    return rearrange(scores, "batch pos head late -> batch pos (head late)")


def _require_position_to_change(position: int, tokens: Tokens) -> None:
    last = tokens.shape[-1] - 2
    if not 1 <= position <= last:
        raise AnalysisError(f"position is {position}; in sequences of {tokens.shape[-1]} it is 1 to {last}")
