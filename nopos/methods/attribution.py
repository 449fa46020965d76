"""Direct logit attribution (notebook, step 5): what each component of the residual stream adds to the logits.

The final LayerNorm's scale is taken as it came out, so that the rest is linear and the contributions sum to the logits.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from nopos.methods.activations import Tokens, require_offset
from nopos.model.config import ModelConfig
from nopos.model.hook_points import EMBED, FINAL_SCALE, POS_EMBED, hook_point
from nopos.model.transformer import NoPosTransformer


def component_names(config: ModelConfig) -> tuple[str, ...]:
    """The hook points whose activations sum to what the final LayerNorm reads."""
    of_layers = (hook_point(layer, part) for layer in range(config.n_layers) for part in ("attn_out", "mlp_out"))
    return (EMBED, POS_EMBED, *of_layers)


@torch.no_grad()
def residual_components(model: NoPosTransformer, tokens: Tokens) -> Float[Tensor, "component batch pos d_model"]:
    """What each of `component_names` writes to the residual stream."""
    written = model.activations(tokens, component_names(model.config))
    return torch.stack(list(written.values()))


@torch.no_grad()
def logit_attribution(model: NoPosTransformer, tokens: Tokens) -> Float[Tensor, "component batch pos d_vocab"]:
    """What each component adds to each logit: in the order of `component_names`, then the biases of the unembedding.

    The sum over components is the logits.
    """
    W_U, bias = unembedding(model)
    components = _normalized(model, tokens)
    of_components = einsum(
        components, W_U, "component batch pos d_model, d_model d_vocab -> component batch pos d_vocab"
    )
    batch, pos = tokens.shape
    return torch.cat([of_components, repeat(bias, "d_vocab -> 1 batch pos d_vocab", batch=batch, pos=pos)])


@torch.no_grad()
def direct_logit_attribution(
    model: NoPosTransformer, tokens: Tokens, *, offset: int
) -> dict[str, Float[Tensor, " query_pos"]]:
    """What each component adds to the logit of the token `offset` back, less what it adds to the mean logit.

    For each component (the last is called `bias`) the mean over the batch, at the positions from `offset` on: 1 is the
    right answer, 0 the current token.
    """
    require_offset(offset, tokens)
    W_U, bias = centred_unembedding(model)
    wanted = tokens[:, : tokens.shape[-1] - offset]
    directions = rearrange(W_U[:, wanted], "d_model batch query_pos -> batch query_pos d_model")
    components = _normalized(model, tokens)[:, :, offset:]
    added = einsum(
        components,
        directions,
        "component batch query_pos d_model, batch query_pos d_model -> component batch query_pos",
    ).mean(dim=1)
    return dict(zip((*component_names(model.config), "bias"), [*added, bias[wanted].mean(dim=0)], strict=True))


def _normalized(model: NoPosTransformer, tokens: Tokens) -> Float[Tensor, "component batch pos d_model"]:
    """The components, centred and divided by the final LayerNorm's scale."""
    read = model.activations(tokens, [*component_names(model.config), FINAL_SCALE])
    scale = read.pop(FINAL_SCALE)
    components = torch.stack(list(read.values()))
    return (components - components.mean(dim=-1, keepdim=True)) / scale


def unembedding(model: NoPosTransformer) -> tuple[Float[Tensor, "d_model d_vocab"], Float[Tensor, " d_vocab"]]:
    """From what is centred and scaled to logits: the final LayerNorm's weight and bias are in it."""
    W_U, b_U = model.unembed.W_U, model.unembed.b_U
    if model.ln_final.folded:
        return W_U, b_U
    return model.ln_final.w[:, None] * W_U, b_U + model.ln_final.b @ W_U


def centred_unembedding(model: NoPosTransformer) -> tuple[Float[Tensor, "d_model d_vocab"], Float[Tensor, " d_vocab"]]:
    """The same to logits over the mean logit."""
    W_U, bias = unembedding(model)
    return W_U - W_U.mean(dim=-1, keepdim=True), bias - bias.mean()
