"""What a token looks like: the same at every position before the first attention, and on average to a later layer."""

from __future__ import annotations

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from nopos.methods.activations import Tokens, activation
from nopos.model.hook_points import EMBED, POS_EMBED
from nopos.model.transformer import NoPosTransformer


@torch.no_grad()
def largest_spread_over_positions(model: NoPosTransformer) -> float:
    """Largest difference, over all tokens and coordinates, between what one token writes at two positions."""
    every_token = torch.arange(model.config.d_vocab)
    tokens = repeat(every_token, "token -> token pos", pos=model.config.n_ctx)
    of_token, of_position = model.activations(tokens, [EMBED, POS_EMBED]).values()
    residual = of_token + of_position  # [token pos d_model]
    return (residual.amax(dim=1) - residual.amin(dim=1)).max().item()


@torch.no_grad()
def mean_by_token(model: NoPosTransformer, tokens: Tokens, *, hook_point: str) -> Float[Tensor, "d_vocab width"]:
    """Mean of an activation [batch pos width] over the positions that hold each token; 0 for one that is nowhere."""
    rows, flat = activation(model, tokens, hook_point).flatten(0, 1), tokens.flatten()
    sums = rows.new_zeros(model.config.d_vocab, rows.shape[-1]).index_add(0, flat, rows)
    return sums / torch.bincount(flat, minlength=model.config.d_vocab).clamp_min(1)[:, None]
