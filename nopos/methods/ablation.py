"""Replace an activation by what does not know the sequence (notebook, step 7), in the four ways that are in use.

`per_position_mean` averages over the batch, as the notebook does: it takes content away and keeps position.
`resample` takes another sequence's activation at the same position: it does the same, and stays among what occurs.
`global_mean` averages over the batch and position: it takes both away. Scores and patterns have two positions, so
for them it is the mean by distance; a pattern's rows are renormalised over the keys that a query may see.
`zero` takes both away, and leaves what never occurs; masked scores stay masked. A LayerNorm's scale cannot be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from nopos.errors import AnalysisError, require_one_of
from nopos.methods.activations import OtherTokens, Tokens, require_as_many
from nopos.methods.interventions import Edit, Effect, effects, logits_with
from nopos.model.data import mean_loss
from nopos.model.transformer import NoPosTransformer, permitted_keys

Kind = Literal["zero", "per_position_mean", "global_mean", "resample"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def per_position_mean(activation: Float[Tensor, "batch ..."]) -> Float[Tensor, "1 ..."]:
    """Mean over the batch alone."""
    return reduce(activation, "batch ... -> 1 ...", "mean")


def global_mean(activation: Float[Tensor, "batch pos ..."]) -> Float[Tensor, "1 1 ..."]:
    """Mean over the batch and position."""
    return reduce(activation, "batch pos ... -> 1 1 ...", "mean")


def mean_by_distance(
    activation: Float[Tensor, "batch head query_pos key_pos"], permitted: Bool[Tensor, "query_pos key_pos"]
) -> Float[Tensor, "1 head query_pos key_pos"]:
    """Each permitted entry replaced by the mean over all permitted entries at its distance; the others stay."""
    position = torch.arange(activation.shape[-1], device=activation.device)
    distance = position[:, None] - position[None, :] + len(position) - 1  # [query_pos key_pos], not negative
    entries = reduce(activation, "batch head query_pos key_pos -> head query_pos key_pos", "mean")
    flat_distance = distance[permitted]
    counts = torch.bincount(flat_distance, minlength=2 * len(position) - 1)
    sums = entries.new_zeros(entries.shape[0], len(counts)).index_add(1, flat_distance, entries[:, permitted])
    return torch.where(permitted, (sums / counts.clamp_min(1))[:, distance], entries)[None]


def replacement_for(
    name: str, activation: Float[Tensor, "batch ..."], kind: Kind, permitted: Bool[Tensor, "query_pos key_pos"]
) -> Float[Tensor, "#batch ..."]:
    """What replaces one hook point's activation in other sequences, with the axes left to broadcast.

    Raises:
        AnalysisError: a scale is to be zero, by which nothing can be divided, or the kind is none of the four.
    """
    require_one_of("kind", kind, KINDS, error=AnalysisError)
    scores, pattern = name.endswith("hook_attn_scores"), name.endswith("hook_pattern")
    match kind:
        case "zero" if name.endswith("hook_scale"):
            raise AnalysisError(f"{name} cannot be ablated to zero: LayerNorm divides by it; use a mean or resample")
        case "zero" if scores:
            return torch.zeros_like(activation[:1]).masked_fill(~permitted, -torch.inf)
        case "zero":
            return torch.zeros_like(activation[:1])
        case "resample":
            return activation
        case "global_mean" if scores:
            return mean_by_distance(activation, permitted)
        case "global_mean" if pattern:
            by_distance = mean_by_distance(activation, permitted)
            return by_distance / by_distance.sum(dim=-1, keepdim=True)
        case "global_mean":
            return global_mean(activation)
        case "per_position_mean":
            return per_position_mean(activation)


@torch.no_grad()
def ablation_losses(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: OtherTokens, kind: Kind, hook_points: Sequence[str]
) -> dict[str, float]:
    """Loss in nats on the previous token with the activation at each hook point ablated: the notebook's table.

    The arguments are those of `ablated`.
    """
    edits = _edits(model, tokens, other_tokens, kind, hook_points)
    return {name: mean_loss(logits_with(model, tokens, {name: edit}), tokens).item() for name, edit in edits}


@torch.no_grad()
def ablated(
    model: NoPosTransformer,
    tokens: Tokens,
    *,
    other_tokens: OtherTokens,
    kind: Kind,
    hook_points: Sequence[str],
    target_offset: int = 1,
) -> dict[str, Effect]:
    """The effect at each hook point of ablating its activation.

    Args:
        tokens: what the effect is measured on.
        other_tokens: at least as many others; means and resampled activations come from them, and have not seen what
            they replace.
        target_offset: how many positions back the token lies that the model is to predict.
    """
    edits = _edits(model, tokens, other_tokens, kind, hook_points)
    return dict(zip(hook_points, effects(model, tokens, edits, target_offset=target_offset), strict=True))


def _edits(
    model: NoPosTransformer, tokens: Tokens, other_tokens: OtherTokens, kind: Kind, hook_points: Sequence[str]
) -> list[tuple[str, Edit]]:
    require_as_many(other_tokens, tokens)
    cache = model.activations(other_tokens, hook_points)
    permitted = permitted_keys(model.config, other_tokens.shape[-1])
    replacements = {name: replacement_for(name, cache[name], kind, permitted)[: len(tokens)] for name in hook_points}
    return [(name, _constant(replacement)) for name, replacement in replacements.items()]


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda activation: value
