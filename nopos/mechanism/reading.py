"""What layer 1 reads of a position, path by path: whose writing do its queries and keys need?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from nopos.methods.activation_patching import mean_activation
from nopos.methods.activations import OtherTokens, Tokens, activation, centred
from nopos.methods.interventions import Effect, effect_of_edits
from nopos.model.hook_points import hook_point
from nopos.model.transformer import NoPosTransformer


@torch.no_grad()
def effect_without_position_of(
    model: NoPosTransformer,
    tokens: Tokens,
    *,
    other_tokens: OtherTokens,
    components: Sequence[str],
    layer: int = 1,
    target_offset: int = 1,
) -> Effect:
    """Effect of taking what some components write of the position out of what a layer's queries and keys read.

    The layer's values and all later layers read it still. What is taken out is the component's mean at each position
    after BOS, less the mean of these.

    Args:
        other_tokens: what the means are taken over.
        components: hook points of what is written to the residual stream before the layer.
    """
    attention, read_by = model.block(layer).attn, model.block(layer).ln1
    taken = sum((_of_position(model, other_tokens, name) for name in components), torch.zeros(()))
    normalized = read_by(activation(model, tokens, hook_point(layer, "resid_pre")) - taken)

    def read(W: Float[Tensor, "head d_model d_head"], b: Float[Tensor, "head d_head"]) -> Tensor:
        return einsum(normalized, W, "batch pos d_model, head d_model d_head -> batch pos head d_head") + b

    q, k = read(attention.W_Q, attention.b_Q), read(attention.W_K, attention.b_K)
    edits = {hook_point(layer, "attn.q"): lambda _: q, hook_point(layer, "attn.k"): lambda _: k}
    return effect_of_edits(model, tokens, edits, target_offset=target_offset)


def _of_position(model: NoPosTransformer, tokens: Tokens, name: str) -> Float[Tensor, "pos d_model"]:
    mean = centred(mean_activation(model, tokens, hook_point=name))
    return torch.cat([torch.zeros_like(mean[:1]), mean[1:] - mean[1:].mean(dim=0)])
