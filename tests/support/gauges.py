"""Other weights for the same function: what no verdict and no measurement may depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nopos.model.config import ModelConfig

Parameters = Mapping[str, Tensor]
Gauge = Callable[[Parameters, ModelConfig, torch.Generator], dict[str, Tensor]]
LOGIT_SCALE = 1.5


def neurons(parameters: Parameters, config: ModelConfig, rng: torch.Generator) -> dict[str, Tensor]:
    """Neurons in another order, each with another scale before its ReLU that is undone behind it."""
    changed = dict(parameters)
    for layer in range(config.n_layers):
        scale, order = torch.randn(config.d_mlp, generator=rng).exp(), torch.randperm(config.d_mlp, generator=rng)
        W_in, b_in, W_out = (f"blocks.{layer}.mlp.{name}" for name in ("W_in", "b_in", "W_out"))
        changed[W_in] = (parameters[W_in] * scale)[:, order]
        changed[b_in] = (parameters[b_in] * scale)[order]
        changed[W_out] = (parameters[W_out] / scale[:, None])[order]
    return changed


def residual_mean(parameters: Parameters, config: ModelConfig, rng: torch.Generator) -> dict[str, Tensor]:
    """Everything that is written to the residual stream gets a part along the direction that LayerNorm subtracts."""
    changed = dict(parameters)
    written = ["embed.W_E"]
    written += [
        f"blocks.{layer}.{name}"
        for layer in range(config.n_layers)
        for name in ("attn.W_O", "attn.b_O", "mlp.W_out", "mlp.b_out")
    ]
    for name in written:
        value = parameters[name]
        size = value.norm(dim=-1, keepdim=True) / config.d_model**0.5
        changed[name] = value + size * torch.randn(size.shape, generator=rng)
    return changed


def key_bias(parameters: Parameters, config: ModelConfig, rng: torch.Generator) -> dict[str, Tensor]:
    """Keys get a bias, which adds the same to all scores of a query."""
    changed = dict(parameters)
    for layer in range(config.n_layers):
        W_K, b_K = (f"blocks.{layer}.attn.{name}" for name in ("W_K", "b_K"))
        size = parameters[W_K].norm(dim=1)
        changed[b_K] = parameters[b_K] + size * torch.randn(size.shape, generator=rng)
    return changed


def head_basis(parameters: Parameters, config: ModelConfig, rng: torch.Generator) -> dict[str, Tensor]:
    """Queries and keys meet in any other basis, values and outputs in a rotated one."""
    changed = dict(parameters)
    for layer in range(config.n_layers):
        attention = f"blocks.{layer}.attn."
        shape = config.n_heads, config.d_head, config.d_head
        rotation = torch.linalg.qr(torch.randn(shape, generator=rng)).Q
        basis = torch.linalg.qr(torch.randn(shape, generator=rng)).Q
        basis = basis * torch.rand(config.n_heads, 1, config.d_head, generator=rng).exp()
        inverse = torch.linalg.inv(basis).mT
        for name, by in (("Q", basis), ("K", inverse), ("V", rotation)):
            W, b = f"{attention}W_{name}", f"{attention}b_{name}"
            changed[W], changed[b] = parameters[W] @ by, (parameters[b][:, None] @ by)[:, 0]
        changed[f"{attention}W_O"] = rotation.mT @ parameters[f"{attention}W_O"]
    return changed


def logit_mean(parameters: Parameters, config: ModelConfig, rng: torch.Generator) -> dict[str, Tensor]:
    """All logits of a position get the same more."""
    W_U = parameters["unembed.W_U"]
    added = W_U.std() * torch.randn(config.d_model, 1, generator=rng)
    return dict(parameters) | {"unembed.W_U": W_U + added, "unembed.b_U": parameters["unembed.b_U"] + 1.0}


def logit_scale(parameters: Parameters, config: ModelConfig, rng: torch.Generator) -> dict[str, Tensor]:
    """All answers are surer: the one change here that the loss may see."""
    scaled = {name: LOGIT_SCALE * parameters[name] for name in ("unembed.W_U", "unembed.b_U")}
    return dict(parameters) | scaled


GAUGES: dict[str, Gauge] = {
    gauge.__name__: gauge for gauge in (neurons, residual_mean, key_bias, head_basis, logit_mean, logit_scale)
}


def all_of_them(parameters: Parameters, config: ModelConfig, rng: torch.Generator) -> dict[str, Tensor]:
    """Every one of them, one after the other."""
    changed = dict(parameters)
    for gauge in GAUGES.values():
        changed = gauge(changed, config, rng)
    return changed
