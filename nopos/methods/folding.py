"""Fold LayerNorm's weights and biases into the matrices that read them (notebook, step 5), exactly, in float64.

The folded model computes the same log-probabilities with a LayerNorm that only centres and scales. It is also centred:
what writes to the residual stream has mean zero over d_model, and the unembedding mean zero over d_vocab, neither of
which a LayerNorm or a softmax can see. The notebook never checks that the outputs agree (slip 6); TransformerLens folds
in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from einops import einsum
from jaxtyping import Float, Float64, Int
from torch import Tensor

from nopos.model.config import ModelConfig
from nopos.model.transformer import NoPosTransformer

Parameters = Mapping[str, Float[Tensor, "..."]]


def folded_config(config: ModelConfig) -> ModelConfig:
    """The same architecture with nothing left of LayerNorm but centring and scaling."""
    return replace(config, normalization="LNPre")


def fold_layer_norm(config: ModelConfig, parameters: Parameters) -> dict[str, Float64[Tensor, ...]]:
    """The parameters of the folded model, in float64; fits `folded_config(config)`.

    A value bias reaches every position with total weight one, so it moves into the output bias.
    """
    p = {name: value.double() for name, value in parameters.items()}
    folded = {name: _centred(p[name]) for name in ("embed.W_E", "pos_embed.W_pos")}
    for layer in range(config.n_layers):
        folded |= _fold_attention(p, f"blocks.{layer}")
        folded |= _fold_mlp(p, f"blocks.{layer}")
    W_U, b_U = _fold_into(p, "ln_final", p["unembed.W_U"], p["unembed.b_U"])
    return folded | {"unembed.W_U": _centred(W_U), "unembed.b_U": _centred(b_U)}


@torch.no_grad()
def largest_log_prob_gap(
    model: NoPosTransformer, tokens: Int[Tensor, "batch pos"], *, folded: NoPosTransformer, dtype: torch.dtype
) -> float:
    """Largest difference in log-probability, in nats, of the folded model in a dtype from the model in float64."""
    exact = deepcopy(model).double()(tokens).log_softmax(dim=-1)
    approximate = deepcopy(folded).to(dtype)(tokens).double().log_softmax(dim=-1)
    return (exact - approximate).abs().max().item()


def _fold_attention(p: Parameters, block: str) -> dict[str, Tensor]:
    folded: dict[str, Tensor] = {}
    for name in "QKV":
        W, b = p[f"{block}.attn.W_{name}"], p[f"{block}.attn.b_{name}"]
        folded[f"{block}.attn.W_{name}"], folded[f"{block}.attn.b_{name}"] = _fold_into(p, f"{block}.ln1", W, b)
    W_O, b_V = p[f"{block}.attn.W_O"], folded[f"{block}.attn.b_V"]
    b_O = p[f"{block}.attn.b_O"] + einsum(b_V, W_O, "head d_head, head d_head d_model -> d_model")
    return folded | {
        f"{block}.attn.b_V": torch.zeros_like(b_V),
        f"{block}.attn.W_O": _centred(W_O),
        f"{block}.attn.b_O": _centred(b_O),
    }


def _fold_mlp(p: Parameters, block: str) -> dict[str, Tensor]:
    W_in, b_in = _fold_into(p, f"{block}.ln2", p[f"{block}.mlp.W_in"], p[f"{block}.mlp.b_in"])
    return {
        f"{block}.mlp.W_in": W_in,
        f"{block}.mlp.b_in": b_in,
        f"{block}.mlp.W_out": _centred(p[f"{block}.mlp.W_out"]),
        f"{block}.mlp.b_out": _centred(p[f"{block}.mlp.b_out"]),
    }


def _fold_into(p: Parameters, layer_norm: str, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Fold one LayerNorm into a matrix [... d_model out] and bias [... out] that read it."""
    w, bias = p[f"{layer_norm}.w"], p[f"{layer_norm}.b"]
    return w[:, None] * W, b + einsum(bias, W, "d_model, ... d_model out -> ... out")


def _centred(value: Tensor) -> Tensor:
    return value - value.mean(dim=-1, keepdim=True)
