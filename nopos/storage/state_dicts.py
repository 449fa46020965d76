"""What a state dict without a manifest shows of its model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nopos.errors import ConfigError
from nopos.model.config import ModelConfig
from nopos.model.parameters import HOOKED_TRANSFORMER_BUFFERS, parameter_shapes


def config_shown_by(state: Mapping[str, Tensor]) -> ModelConfig:
    """The sizes that a state dict's shapes show, if all of them agree; else the default ones.

    What shapes do not show is as by default.
    """
    shown = {
        name: tuple(value.shape) for name, value in state.items() if not HOOKED_TRANSFORMER_BUFFERS.fullmatch(name)
    }
    try:
        d_vocab, d_model = shown["embed.W_E"]
        n_ctx, _ = shown["pos_embed.W_pos"]
        n_heads, _, d_head = shown["blocks.0.attn.W_Q"]
        _, d_mlp = shown["blocks.0.mlp.W_in"]
        n_layers = sum(name.endswith(".mlp.W_in") for name in shown)
        config = ModelConfig(
            n_layers=n_layers, n_heads=n_heads, d_model=d_model, d_head=d_head, d_mlp=d_mlp, d_vocab=d_vocab,
            n_ctx=n_ctx,
        )  # fmt: skip
    except (KeyError, ValueError, ConfigError):
        return ModelConfig()
    return config if shown == parameter_shapes(config) else ModelConfig()
