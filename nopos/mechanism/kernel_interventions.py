"""What layer 1's kernel does: codes patched under it, and the content in its scores taken away."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nopos.mechanism.kernel import scores_from_weights
from nopos.mechanism.position_code import Codes, position_codes
from nopos.methods.activation_patching import SPACING, random_directions
from nopos.methods.activations import OtherTokens, Tokens, activation, require_positions
from nopos.methods.attention import LATE
from nopos.methods.interventions import activation_with, logits_with
from nopos.methods.metrics import lead
from nopos.methods.statistics import share_explained, slope
from nopos.model.data import generator
from nopos.model.hook_points import hook_point
from nopos.model.transformer import NoPosTransformer

SHIFTS = (-6, -3, 3, 6)
"""From how many positions away codes are patched in."""

Changes = Float[Tensor, "head patch"]


@dataclass(frozen=True)
class ScoreChanges:
    """Change of scores, in nats, when codes are patched."""

    predicted: Changes
    """By the weights and the law."""
    observed: Changes
    random: Changes
    """With random directions of the same norms."""

    @property
    def explained(self) -> float:
        """Share of the sum of squares of the observed changes that the prediction gets right."""
        return share_explained(self.predicted, self.observed)

    @property
    def random_slope(self) -> float:
        """Of the changes by random directions on the predicted ones: 0 where these have nothing to do with them."""
        return slope(self.random, on=self.predicted)


@torch.no_grad()
def scores_of_patched_codes(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: OtherTokens, folded: NoPosTransformer
) -> ScoreChanges:
    """Put another position's mean code into some residuals after layer 0, and see later queries' scores of them.

    Args:
        other_tokens: what the mean codes are taken over.
        folded: the folded model, whose weights and law predict what each score becomes.
    """
    pos = tokens.shape[-1]
    require_positions(pos, at_least=LATE + SPACING + 3)
    residual, scores = hook_point(0, "resid_post"), hook_point(1, "attn.attn_scores")
    before = activation(model, tokens, scores)
    codes, from_weights = position_codes(model, other_tokens), scores_from_weights(folded, pos=pos)
    patched = torch.arange(LATE, pos - SPACING - 2, SPACING)
    queries = patched + SPACING + 2  # between the patched positions, and after wherever their codes come from
    rng = generator("random directions", 0)

    def change(added: Codes) -> Changes:
        after = activation_with(model, tokens, scores, {residual: lambda stream: stream + added})
        return (after - before)[:, :, queries, patched].mean(dim=0)

    predicted, observed, random = [], [], []
    for shift in SHIFTS:
        added = torch.zeros_like(codes)
        added[patched] = codes[patched + shift] - codes[patched]
        predicted.append((from_weights[:, queries, patched + shift] - from_weights[:, queries, patched]).float())
        observed.append(change(added))
        random.append(change(random_directions(added, rng)))
    return ScoreChanges(torch.cat(predicted, dim=-1), torch.cat(observed, dim=-1), torch.cat(random, dim=-1))


@dataclass(frozen=True)
class Tilts:
    """For each answer from the position after the first: what content in a layer's scores does to it."""

    harm: Float[Tensor, "batch answer"]
    """By how much the right logit leads the largest other one less than with the layer's mean pattern."""
    tilt: Float[Tensor, "batch answer"]
    """Logarithm of the weight on the token to predict over that on the one before, less that in the mean pattern."""

    @property
    def share_of_harm_tilted_away(self) -> float:
        """Of all harm, that in the half of the answers which are tilted most from the right token; 0 of none."""
        by_tilt = self.harm.flatten()[self.tilt.flatten().argsort()]
        total = by_tilt.sum().item()
        return by_tilt[: len(by_tilt) // 2].sum().item() / total if total > 0 else 0.0


@torch.no_grad()
def tilts(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: OtherTokens, offset: int = 1, layer: int = 1
) -> Tilts:
    """What content in a layer's scores does to each answer, against the layer's mean pattern.

    Args:
        other_tokens: what the mean pattern is taken over.
        offset: how many positions back the right answer lies.
    """
    name = hook_point(layer, "attn.pattern")
    mean = activation(model, other_tokens, name).mean(dim=0)
    own = activation(model, tokens, name)
    with_mean = logits_with(model, tokens, {name: lambda _: mean})
    harm = lead(with_mean, tokens, target_offset=offset) - lead(model.logits(tokens), tokens, target_offset=offset)
    return Tilts(harm[:, 1:], _lead(own, offset) - _lead(mean, offset))


def _lead(pattern: Float[Tensor, "*batch head query_pos key_pos"], offset: int) -> Float[Tensor, "*batch answer"]:
    """Logarithm of the weight at an offset over that one further back, heads averaged."""
    tiny = torch.finfo(pattern.dtype).tiny
    near, far = (
        pattern.diagonal(-back, dim1=-2, dim2=-1).mean(dim=-2).clamp_min(tiny).log() for back in (offset, offset + 1)
    )
    return near[..., 1:] - far
