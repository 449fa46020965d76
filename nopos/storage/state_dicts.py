"""What a state dict without a manifest shows of its model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nopos.errors import CheckpointError, ConfigError
from nopos.model.config import ModelConfig
from nopos.model.parameters import HOOKED_TRANSFORMER_BUFFERS

READ_OFF = {
    "embed.W_E": ("d_vocab", "d_model"),
    "pos_embed.W_pos": ("n_ctx", None),
    "blocks.0.attn.W_Q": ("n_heads", None, "d_head"),
    "blocks.0.mlp.W_in": (None, "d_mlp"),
}
"""Which weight shows which sizes; None where another has shown it."""


def config_shown_by(state: Mapping[str, Tensor], *, where: str, bidirectional: bool = False) -> ModelConfig:
    """The sizes that a state dict's shapes show, and whether it is causal, by HookedTransformer's mask if it is there.

    That all shapes agree is seen when the parameters are taken.

    Args:
        state: names to tensors.
        where: what the message says they come from.
        bidirectional: whether a model without a mask in its state dict has none; by default it is causal, as
            HookedTransformer's are.

    Raises:
        CheckpointError: a weight that shows a size is missing or of another rank, or the mask is neither kind.
    """
    sizes: dict[str | None, int] = {}
    for name, axes in READ_OFF.items():
        if name not in state:
            raise CheckpointError(f"{where}: has no {name}; it must be a HookedTransformer state dict with MLPs")
        shape = tuple(state[name].shape)
        if len(shape) != len(axes):
            raise CheckpointError(f"{where}: {name} is {list(shape)}; it must have {len(axes)} axes")
        sizes |= dict(zip(axes, shape, strict=True))
    try:
        return ModelConfig(
            n_layers=sum(name.endswith(".mlp.W_in") for name in state),
            n_heads=sizes["n_heads"],
            d_model=sizes["d_model"],
            d_head=sizes["d_head"],
            d_mlp=sizes["d_mlp"],
            d_vocab=sizes["d_vocab"],
            n_ctx=sizes["n_ctx"],
            causal=_is_causal(state, where, default=not bidirectional),
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _is_causal(state: Mapping[str, Tensor], where: str, *, default: bool) -> bool:
    for name, mask in state.items():
        if HOOKED_TRANSFORMER_BUFFERS.fullmatch(name) and name.endswith(".mask"):
            if mask.layout != torch.strided or mask.device.type != "cpu":
                raise CheckpointError(f"{where}: {name} is no ordinary dense tensor; save it as one, on the CPU")
            if mask.ndim == 2 and torch.equal(mask.bool(), torch.ones_like(mask, dtype=torch.bool).tril()):
                return True
            if bool(mask.all()):
                return False
            raise CheckpointError(f"{where}: {name} is no causal mask and not all true; it must be one of the two")
    return default
