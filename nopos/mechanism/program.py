"""All of the mechanism together: what is left of the answers when every part is replaced by its account at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Float64
from torch import Tensor

from nopos.mechanism.count import PATTERN, dilution_of_queries, pattern_of_counts, true_counts
from nopos.mechanism.kernel import scores_from_weights
from nopos.methods.activations import OtherTokens, Tokens
from nopos.methods.interventions import Edit, Effect, activation_with, effect_of_edits
from nopos.model.hook_points import hook_point
from nopos.model.transformer import NoPosTransformer

SCORES = hook_point(1, "attn.attn_scores")


@dataclass(frozen=True)
class AffineMap:
    """A linear map and what is added."""

    weights: Float64[Tensor, "d_in d_out"]
    bias: Float64[Tensor, " d_out"]

    def __call__(self, read: Float[Tensor, "*shape d_in"]) -> Float[Tensor, "*shape d_out"]:
        """Its value, in the precision of what it reads."""
        return (einsum(read.double(), self.weights, "... d_in, d_in d_out -> ... d_out") + self.bias).to(read)


@torch.no_grad()
def affine_map_of_mlp(model: NoPosTransformer, tokens: Tokens, *, layer: int = 1) -> AffineMap:
    """The affine map of what a layer's MLP reads that comes nearest to what it writes, by least squares over tokens."""
    names = [hook_point(layer, "ln2.normalized"), hook_point(layer, "mlp_out")]
    read, written = (each.flatten(0, 1).double() for each in model.activations(tokens, names).values())
    mean_read, mean_written = read.mean(dim=0), written.mean(dim=0)
    weights = torch.linalg.lstsq(read - mean_read, written - mean_written, driver="gelsd").solution
    return AffineMap(weights, mean_written - mean_read @ weights)


@torch.no_grad()
def effect_of_the_program(
    model: NoPosTransformer,
    tokens: Tokens,
    *,
    other_tokens: OtherTokens,
    folded: NoPosTransformer,
    patterns: bool = True,
    decoding: bool = True,
    target_offset: int = 1,
) -> Effect:
    """Effect of replacing parts of the model by what the account of the mechanism says of them, all at once.

    Args:
        other_tokens: what the affine map is fitted on.
        folded: the folded model, from whose weights the patterns are computed.
        patterns: replace layer 0's pattern by the law of dilution, and layer 1's scores by those from the weights.
        decoding: replace MLP 1 by one affine map of what it reads.
    """
    edits: dict[str, Edit] = {}
    if patterns:
        by_law = pattern_of_counts(dilution_of_queries(folded, tokens), true_counts(tokens))
        scores = scores_from_weights(folded, pos=tokens.shape[-1]).float()
        edits |= {PATTERN: lambda _: by_law, SCORES: lambda _: scores}
    if decoding:
        read = activation_with(model, tokens, hook_point(1, "ln2.normalized"), edits)
        written = affine_map_of_mlp(model, other_tokens)(read)
        edits[hook_point(1, "mlp_out")] = lambda _: written
    return effect_of_edits(model, tokens, edits, target_offset=target_offset)
