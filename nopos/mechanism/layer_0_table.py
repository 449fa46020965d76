"""All of layer 0 as a table of token and position, from the weights and the law of dilution; no sequence is read."""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

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

    Each head's attention gives the value of BOS and, for whatever else the position sees, the mean value of the other
    tokens. Position 0 holds BOS and sees itself.

    Raises:
        AnalysisError: the model is not folded.
    """
    block, embedding = folded.block(0), normalized_embedding(folded)
    attention = block.attn
    values = einsum(embedding, attention.W_V, "token d_model, head d_model d_head -> head token d_head")
    values = values + attention.b_V[:, None]
    counts = torch.arange(folded.config.n_ctx).to(values)
    on_bos = weight_on_bos(folded.of_weights(dilution).to(values)[..., None], counts)  # [head token pos]
    written = einsum(values, attention.W_O, "head token d_head, head d_head d_model -> head token d_model")
    of_others, of_bos = written[:, BOS + 1 :].mean(dim=1), written[:, BOS]
    residual = folded.embed.W_E[:, None] + of_others.sum(dim=0) + attention.b_O
    residual = residual + einsum(on_bos, of_bos - of_others, "head token pos, head d_model -> token pos d_model")
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
