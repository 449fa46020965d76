"""A transformer of attention layers alone, with learned positions that only queries and keys see.

Values, and with them the residual stream, hold tokens and never positions (as in Shortformer, Press et al. 2020). So
what a head moves is tokens alone, and a match by content cannot be confused with one by position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor, nn

from sequences import D_VOCAB, N_CTX


@dataclass(frozen=True)
class Sizes:
    """Of a model."""

    n_layers: int = 2
    n_heads: int = 4
    d_model: int = 64
    d_head: int = 16
    d_vocab: int = D_VOCAB
    n_ctx: int = N_CTX


class Attention(nn.Module):
    """One layer: each head adds to the residual stream what it reads at the positions that it attends to."""

    def __init__(self, sizes: Sizes, generator: torch.Generator) -> None:
        """Draw the weights."""
        super().__init__()
        into_head = (sizes.n_heads, sizes.d_model, sizes.d_head)
        self.W_Q = _drawn(*into_head, fan_in=sizes.d_model, generator=generator)
        self.W_K = _drawn(*into_head, fan_in=sizes.d_model, generator=generator)
        self.W_V = _drawn(*into_head, fan_in=sizes.d_model, generator=generator)
        self.W_O = _drawn(sizes.n_heads, sizes.d_head, sizes.d_model, fan_in=sizes.d_model, generator=generator)
        # Places for forward hooks: a hook sees what passes, and what it returns goes on instead.
        self.hook_key_input = nn.Identity()
        self.hook_scores = nn.Identity()
        self.hook_pattern = nn.Identity()
        self.hook_result = nn.Identity()

    def forward(
        self, residual: Float[Tensor, "batch pos d_model"], positions: Float[Tensor, "pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after this layer."""
        query_input, key_input = residual + positions, self.hook_key_input(residual) + positions
        queries = einsum(query_input, self.W_Q, "batch pos d_model, head d_model d_head -> batch head pos d_head")
        keys = einsum(key_input, self.W_K, "batch pos d_model, head d_model d_head -> batch head pos d_head")
        values = einsum(residual, self.W_V, "batch pos d_model, head d_model d_head -> batch head pos d_head")
        scores = einsum(
            queries, keys, "batch head query_pos d_head, batch head key_pos d_head -> batch head query_pos key_pos"
        )
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal=1)
        scores = self.hook_scores((scores / queries.shape[-1] ** 0.5).masked_fill(later, -torch.inf))
        pattern = self.hook_pattern(scores.softmax(dim=-1))
        read = einsum(
            pattern, values, "batch head query_pos key_pos, batch head key_pos d_head -> batch head query_pos d_head"
        )
        result = einsum(read, self.W_O, "batch head pos d_head, head d_head d_model -> batch head pos d_model")
        written: Tensor = self.hook_result(result).sum(dim=1)
        return residual + written


class AttentionOnly(nn.Module):
    """Tokens in, logits of the next token out."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        """Draw the weights."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.W_E = _drawn(sizes.d_vocab, sizes.d_model, fan_in=1, generator=generator)
        self.W_pos = _drawn(sizes.n_ctx, sizes.d_model, fan_in=1, generator=generator)
        self.layers = nn.ModuleList(Attention(sizes, generator) for _ in range(sizes.n_layers))
        self.W_U = _drawn(sizes.d_model, sizes.d_vocab, fan_in=sizes.d_model, generator=generator)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """At each position, the logits of the token that comes next."""
        residual = self.W_E[tokens]
        for layer in self.layers:
            residual = layer(residual, self.W_pos[: tokens.shape[1]])
        logits: Tensor = einsum(residual, self.W_U, "batch pos d_model, d_model d_vocab -> batch pos d_vocab")
        return logits

    def layer(self, number: int) -> Attention:
        """A layer by its number, from 0; -1 is the last."""
        layer = self.layers[number]
        assert isinstance(layer, Attention)
        return layer


def _drawn(*shape: int, fan_in: int, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=generator) / fan_in**0.5)
