"""The parameters of a model under HookedTransformer's names: shapes, seeded start, and what a state dict must be."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from nopos.errors import CheckpointError
from nopos.model.config import ModelConfig
from nopos.model.data import generator

# A HookedTransformer state dict carries these beside its parameters; both follow from the config.
HOOKED_TRANSFORMER_BUFFERS = re.compile(r"blocks\.\d+\.attn\.(mask|IGNORE)")


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter by its HookedTransformer name, in the order of the forward pass."""
    c = config
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (c.d_vocab, c.d_model),
        "pos_embed.W_pos": (c.n_ctx, c.d_model),
    }
    for layer in range(c.n_layers):
        block = f"blocks.{layer}"
        shapes |= _layer_norm_shapes(f"{block}.ln1", c)
        shapes |= {f"{block}.attn.W_{name}": (c.n_heads, c.d_model, c.d_head) for name in "QKV"}
        shapes |= {f"{block}.attn.b_{name}": (c.n_heads, c.d_head) for name in "QKV"}
        shapes |= {f"{block}.attn.W_O": (c.n_heads, c.d_head, c.d_model), f"{block}.attn.b_O": (c.d_model,)}
        shapes |= _layer_norm_shapes(f"{block}.ln2", c)
        shapes |= {f"{block}.mlp.W_in": (c.d_model, c.d_mlp), f"{block}.mlp.b_in": (c.d_mlp,)}
        shapes |= {f"{block}.mlp.W_out": (c.d_mlp, c.d_model), f"{block}.mlp.b_out": (c.d_model,)}
    shapes |= _layer_norm_shapes("ln_final", c)
    return shapes | {"unembed.W_U": (c.d_model, c.d_vocab), "unembed.b_U": (c.d_vocab,)}


def _layer_norm_shapes(name: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    if config.normalization == "LNPre":
        return {}
    return {f"{name}.w": (config.d_model,), f"{name}.b": (config.d_model,)}


def initial_parameters(config: ModelConfig, seed: int, *, scale: float = 0.8) -> dict[str, Float[Tensor, ...]]:
    """A start: every matrix N(0, (scale / sqrt(d_model))^2), biases 0, LayerNorm 1 and 0; by default the notebook's.

    Drawn on the CPU whatever device trains, `W_pos` last and from the same generator, so that a model with learned
    positions starts from the other weights of the one without. Without positions `W_pos` is zero.
    """
    rng = generator("weights", seed)
    std = scale / config.d_model**0.5
    shapes = parameter_shapes(config)
    parameters = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for name in sorted(shapes, key="pos_embed.W_pos".__eq__):
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "w":
            parameters[name].fill_(1.0)
        elif leaf.startswith("W_") and not (leaf == "W_pos" and config.positions == "none"):
            parameters[name].normal_(0.0, std, generator=rng)
    return parameters


def trainable(name: str, config: ModelConfig) -> bool:
    """Whether training moves a parameter: all but a `W_pos` that is not used."""
    return name != "pos_embed.W_pos" or config.positions == "learned"


def parameters_of(state: Mapping[str, Tensor], config: ModelConfig, *, where: str) -> dict[str, Tensor]:
    """The parameters in a state dict of ours or HookedTransformer's, checked and in our order; values are untouched.

    Args:
        state: names to tensors; HookedTransformer's buffers are left out.
        where: what the message says the values come from.

    Raises:
        CheckpointError: a parameter is missing, unknown, of another shape, not dense float32, or not finite.
    """
    shapes = parameter_shapes(config)
    found = {name: value for name, value in state.items() if not HOOKED_TRANSFORMER_BUFFERS.fullmatch(name)}
    missing = [name for name in shapes if name not in found]
    unknown = sorted(name for name in found if name not in shapes)
    if missing:
        raise CheckpointError(f"{where}: has no {_some(missing)}; every parameter of the model is needed")
    if unknown:
        raise CheckpointError(f"{where}: holds {_some(unknown)}, which this model does not have")
    for name, shape in shapes.items():
        value = found[name]
        if tuple(value.shape) != shape:
            raise CheckpointError(f"{where}: {name} is {list(value.shape)}; this model needs {list(shape)}")
        if value.layout != torch.strided or value.device.type != "cpu":
            raise CheckpointError(f"{where}: {name} is no ordinary dense tensor; save it as one, on the CPU")
        if value.dtype != torch.float32:
            raise CheckpointError(f"{where}: {name} is {_bare(value.dtype)}; it must be float32")
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{where}: {name} holds values that are not finite; every weight must be")
    return {name: found[name] for name in shapes}


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{rest}"


def _bare(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
