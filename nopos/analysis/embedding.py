"""What the residual stream says of position before the first attention."""

from __future__ import annotations

import torch
from einops import repeat

from nopos.model import NoPosTransformer


@torch.no_grad()
def largest_spread_over_slots(model: NoPosTransformer) -> float:
    """Largest difference, over all tokens and coordinates, between what one token writes at two slots."""
    every_token = torch.arange(model.config.d_vocab)
    tokens = repeat(every_token, "token -> token pos", pos=model.config.n_ctx)
    name = "blocks.0.hook_resid_pre"
    _, cache = model.run_with_cache(tokens, names_filter=name)
    residual = cache[name]  # [token pos d_model]
    return (residual.amax(dim=1) - residual.amin(dim=1)).max().item()
