"""Layer 0 as a counter: attention to BOS is diluted by every key that is not BOS.

After i other keys whose scores are alike, attention to BOS is a/(a+i) and to every other key 1/(a+i) (Kazemnejad and
others, 2023, theorem 1). The dilution `a` is how many other keys BOS weighs as much as. It belongs to the query's token
and is read off the weights; the law has no free number.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from nopos.errors import AnalysisError, require_one_of
from nopos.methods.activations import OtherTokens, Tokens, activation
from nopos.methods.attention import Pattern, patterns
from nopos.methods.circuits import qk_circuit
from nopos.methods.interventions import Edit, Effect, effect_of
from nopos.model.config import BOS
from nopos.model.hook_points import hook_point
from nopos.model.transformer import NoPosTransformer

PATTERN, VALUES = hook_point(0, "attn.pattern"), hook_point(0, "attn.v")
"""Layer 0's: the law is about a layer that reads tokens alone."""
LARGEST = 1e30
"""Of a dilution: float32 has larger numbers, but not their products."""
Dilution = Float[Tensor, "batch head query_pos"]
Part = Literal["all", "BOS", "others"]
Keys = Literal["BOS", "others"]


def dilution(folded: NoPosTransformer) -> Float[Tensor, "head query_token"]:
    """For each query token, layer 0's weight on BOS over its mean weight on another token, from the QK circuit alone.

    Kept within LARGEST and its inverse, beyond which a pattern in float32 is 0 or 1 and nothing is diluted.

    Raises:
        AnalysisError: the model is not folded.
    """
    scores = qk_circuit(folded, layer=0)
    over_bos = (scores - scores[..., BOS, None]).exp()
    return (1 / over_bos[..., BOS + 1 :].mean(dim=-1)).clamp(1 / LARGEST, LARGEST)


def median_dilution(folded: NoPosTransformer) -> Float[Tensor, " head"]:
    """That of the median token other than BOS."""
    return folded.of_weights(dilution)[:, BOS + 1 :].median(dim=-1).values


def dilution_of_queries(folded: NoPosTransformer, tokens: Tokens, *, one_for_all: bool = False) -> Dilution:
    """The dilution of the token at each position, in float32.

    Args:
        one_for_all: the median token's at every position.
    """
    own = rearrange(folded.of_weights(dilution)[:, tokens], "head batch query_pos -> batch head query_pos").float()
    return median_dilution(folded).float()[:, None].expand_as(own) if one_for_all else own


def weight_on_bos(a: Float[Tensor, "*#shape"], counts: Float[Tensor, "*#shape"]) -> Float[Tensor, ...]:
    """The law: what BOS gets of the attention, by a query's dilution and its count."""
    return a / (a + counts)


def pattern_of_counts(a: Dilution, counts: Float[Tensor, " query_pos"]) -> Pattern:
    """Attention a/(a+n) to position 0 after a count of n, the rest alike on all later positions up to the query's own.

    Under the law n is the number of those positions; any other number is a count put in by hand. Position 0 sees itself
    alone.
    """
    pos = a.shape[-1]
    on_bos = weight_on_bos(a, counts)
    on_another = (1 - on_bos) / torch.arange(pos).clamp_min(1)
    pattern = repeat(on_another, "batch head query_pos -> batch head query_pos key_pos", key_pos=pos).tril()
    pattern[..., 0] = on_bos
    pattern[..., 0, 0] = 1.0
    return pattern


def true_counts(tokens: Tokens) -> Float[Tensor, " pos"]:
    """How many positions after BOS each position sees, its own included."""
    return torch.arange(tokens.shape[-1], dtype=torch.float32)


def error_of_the_law(model: NoPosTransformer, tokens: Tokens, *, folded: NoPosTransformer) -> float:
    """Root mean square of the relative error of the law's weights on BOS, over all queries from position 1 on.

    Args:
        folded: the folded model, from which the dilutions come, here and below.
    """
    observed = patterns(model, tokens, layer=0)[:, :, 1:, 0]
    predicted = pattern_of_counts(dilution_of_queries(folded, tokens), true_counts(tokens))[:, :, 1:, 0]
    return (observed / predicted - 1).double().pow(2).mean().sqrt().item()


def effect_of_the_law(
    model: NoPosTransformer,
    tokens: Tokens,
    *,
    folded: NoPosTransformer,
    one_for_all: bool = False,
    part: Part = "all",
    target_offset: int = 1,
) -> Effect:
    """Effect of replacing layer 0's pattern by the law's.

    Args:
        one_for_all: give all queries the median token's dilution instead of their own.
        part: replace the weight on BOS alone, the others keeping their proportions; or the proportions alone.
    """
    require_one_of("part", part, get_args(Part), error=AnalysisError)
    predicted = pattern_of_counts(dilution_of_queries(folded, tokens, one_for_all=one_for_all), true_counts(tokens))

    def replace(pattern: Pattern) -> Pattern:
        match part:
            case "all":
                return predicted
            case "BOS":
                return _joined(predicted, pattern)
            case "others":
                return _joined(pattern, predicted)

    return effect_of(model, tokens, PATTERN, replace, target_offset=target_offset)


def average_values(mean: Float[Tensor, "head d_head"], keys: Keys) -> Edit:
    """The edit of layer 0's values that gives BOS, or every other position, the same value.

    Raises:
        AnalysisError: it is neither.
    """
    require_one_of("keys", keys, get_args(Keys), error=AnalysisError)

    def average(v: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        bos, others = v[:, :1], v[:, 1:]
        return torch.cat([mean.expand_as(bos), others] if keys == "BOS" else [bos, mean.expand_as(others)], dim=1)

    return average


def mean_value(model: NoPosTransformer, tokens: Tokens) -> Float[Tensor, "head d_head"]:
    """Layer 0's mean value over the positions after BOS."""
    return activation(model, tokens, VALUES)[:, 1:].mean(dim=(0, 1))


def effect_of_averaging_values(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: OtherTokens, keys: Keys, target_offset: int = 1
) -> Effect:
    """Effect of replacing layer 0's value of BOS, or that of every other token, by the others' mean value.

    Args:
        other_tokens: what the mean is taken over.
        keys: of which the value is replaced.
    """
    edit = average_values(mean_value(model, other_tokens), keys)
    return effect_of(model, tokens, VALUES, edit, target_offset=target_offset)


def _joined(on_bos: Pattern, on_others: Pattern) -> Pattern:
    """The weight on position 0 of one pattern, and the proportions among the other keys of another."""
    bos, others = on_bos[..., :1], on_others[..., 1:]
    left = (1 - bos) / others.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(others.dtype).tiny)
    return torch.cat([bos, left * others], dim=-1)
