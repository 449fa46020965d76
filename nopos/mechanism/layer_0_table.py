"""All of layer 0 as a table of token and position, from the weights and the law of dilution; no sequence is read."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from nopos.errors import AnalysisError
from nopos.mechanism.count import dilution, weight_on_bos
from nopos.methods.activations import Tokens
from nopos.methods.circuits import normalized_embedding
from nopos.methods.interventions import Effect, effect_of
from nopos.model.config import BOS
from nopos.model.hook_points import hook_point
from nopos.model.transformer import NoPosTransformer


@torch.no_grad()
def residual_table(folded: NoPosTransformer) -> Float[Tensor, "token pos d_model"]:
    """What layer 0 leaves in the residual stream for each token at each position, from the weights and the law alone.

    Attention gives the value of BOS and, for whatever else the position sees, the mean value of the other tokens.
    Position 0 holds BOS and sees itself.

    Raises:
        AnalysisError: the model is not folded, or has more than one head.
    """
    if folded.config.n_heads != 1:
        raise AnalysisError(f"layer 0 has {folded.config.n_heads} heads; the law is put into tables for one")
    block, embedding = folded.block(0), normalized_embedding(folded)
    values = embedding @ block.attn.W_V[0] + block.attn.b_V[0]
    counts = torch.arange(folded.config.n_ctx).to(values)
    a = rearrange(folded.of_weights(dilution)[0].to(values), "token -> token 1")
    on_bos = weight_on_bos(a, counts)
    mixed = torch.lerp(values[BOS + 1 :].mean(dim=0), values[BOS], on_bos[..., None])  # [token pos d_head]
    residual = folded.embed.W_E[:, None] + mixed @ block.attn.W_O[0] + block.attn.b_O
    residual = residual + block.mlp(block.ln2(residual))
    residual[:, 0] = residual[BOS, 0]
    return residual


def effect_of_the_table(
    model: NoPosTransformer, tokens: Tokens, *, folded: NoPosTransformer, target_offset: int = 1
) -> Effect:
    """Effect of replacing all of layer 0 by the table's entry of each token at its position.

    Args:
        folded: the folded model that the table is computed from.
    """
    entries = folded.of_weights(residual_table).float()[tokens, torch.arange(tokens.shape[-1])]
    return effect_of(model, tokens, hook_point(0, "resid_post"), lambda _: entries, target_offset=target_offset)
