"""Damage to a model's weights, drawn from a seed: what the claims about it must notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nopos.model.config import ModelConfig

Parameters = dict[str, Float[Tensor, "..."]]
Damage = Callable[[Tensor, torch.Generator], tuple[str, Tensor]]
"""From weights to what was done to them, in words, and what came of it."""

OF_A_LAYER = ("attn.W_Q", "attn.W_K", "attn.W_V", "attn.W_O", "mlp.W_in", "mlp.W_out")
SMALLEST_NOISE = 0.03
"""In standard deviations of what it falls on; the largest is one."""
BLOCK_SIZES = (4, 64)
"""Fewest and most neurons in a block that is damaged."""
BLOCKS = 2
"""Blocks of neurons that are drawn in each layer."""
STALE_FOLDS = 3


@dataclass(frozen=True)
class Mutant:
    """A model with one piece of damage."""

    name: str
    """What was done to what, with all that was drawn but the order of entries."""
    parameters: Parameters
    stale_fold: bool = False
    """Whether its folded model is that of the model before the damage."""


def matrices(config: ModelConfig) -> tuple[str, ...]:
    """The weight matrices that training moves: all but `W_pos`, the biases and LayerNorm's weights."""
    of_layers = (f"blocks.{layer}.{name}" for layer in range(config.n_layers) for name in OF_A_LAYER)
    return ("embed.W_E", *of_layers, "unembed.W_U")


def zeroed(value: Tensor, rng: torch.Generator) -> tuple[str, Tensor]:  # noqa: ARG001 - a Damage
    """Nothing left."""
    return "zeroed", torch.zeros_like(value)


def permuted(value: Tensor, rng: torch.Generator) -> tuple[str, Tensor]:
    """The same entries in another order."""
    order = torch.randperm(value.numel(), generator=rng)
    return "permuted", value.flatten()[order].reshape(value.shape)


def sign_flipped(value: Tensor, rng: torch.Generator) -> tuple[str, Tensor]:  # noqa: ARG001 - a Damage
    """Every entry negated."""
    return "sign-flipped", -value


def noised(value: Tensor, rng: torch.Generator) -> tuple[str, Tensor]:
    """Normal noise added, its size drawn on a logarithmic scale."""
    size = _drawn_between(SMALLEST_NOISE, 1.0, rng)
    noise = torch.randn(value.shape, generator=rng)
    return f"noised by {size:.2f} sd", value + size * value.std(correction=0) * noise


KINDS: tuple[Damage, ...] = (zeroed, permuted, sign_flipped, noised)


def with_permuted_matrices(config: ModelConfig, parameters: Mapping[str, Tensor], rng: torch.Generator) -> Parameters:
    """Every weight matrix with its entries in another order."""
    return {**parameters} | {name: permuted(parameters[name], rng)[1] for name in matrices(config)}


def mutants(config: ModelConfig, parameters: Mapping[str, Tensor], rng: torch.Generator) -> Iterator[Mutant]:
    """One mutant for each kind of damage to each matrix and block of neurons, and for each swap between two layers.

    A block's damage falls on what its neurons read and on what they write; neurons that are swapped with another
    layer's take their biases along. Beside these `W_pos` gets noise, and some damaged models keep an old folded model.
    """
    given = {**parameters}
    for name in matrices(config):
        for damage in KINDS:
            how, value = damage(given[name], rng)
            yield Mutant(f"{name} {how}", given | {name: value})
    for layer in range(config.n_layers):
        for _ in range(BLOCKS):
            yield from _damaged_block(given, layer, _drawn_block(config, rng), rng)
    for layer in range(1, config.n_layers):
        yield from _swapped(config, given, layer - 1, layer, rng)
    size = _drawn_between(SMALLEST_NOISE, 1.0, rng)
    noise = size * given["embed.W_E"].std() * torch.randn(given["pos_embed.W_pos"].shape, generator=rng)
    yield Mutant(f"pos_embed.W_pos noised by {size:.2f} sd of W_E", given | {"pos_embed.W_pos": noise})
    for number in torch.randperm(len(matrices(config)), generator=rng)[:STALE_FOLDS].tolist():
        name = matrices(config)[number]
        how, value = noised(given[name], rng)
        yield Mutant(f"{name} {how} after folding", given | {name: value}, stale_fold=True)


def _drawn_between(low: float, high: float, rng: torch.Generator) -> float:
    """A number whose logarithm is uniform."""
    return float(low * (high / low) ** torch.rand((), generator=rng).item())


def _drawn_block(config: ModelConfig, rng: torch.Generator) -> Int[Tensor, " neuron"]:
    size = min(round(_drawn_between(*BLOCK_SIZES, rng)), config.d_mlp)
    return torch.randperm(config.d_mlp, generator=rng)[:size]


def _damaged_block(
    given: Parameters, layer: int, neurons: Int[Tensor, " neuron"], rng: torch.Generator
) -> Iterator[Mutant]:
    W_in, W_out = f"blocks.{layer}.mlp.W_in", f"blocks.{layer}.mlp.W_out"
    what = f"{len(neurons)} neurons of layer {layer}, from {neurons[0]}"
    for damage in KINDS:
        reads, writes = given[W_in].clone(), given[W_out].clone()
        how_read, reads[:, neurons] = damage(reads[:, neurons], rng)
        how_write, writes[neurons] = damage(writes[neurons], rng)
        how = how_read if how_read == how_write else f"{how_read} and {how_write}"
        yield Mutant(f"{what}: {how}", given | {W_in: reads, W_out: writes})


def _swapped(config: ModelConfig, given: Parameters, lower: int, upper: int, rng: torch.Generator) -> Iterator[Mutant]:
    between = f"swapped between layers {lower} and {upper}"
    for name in OF_A_LAYER:
        below, above = f"blocks.{lower}.{name}", f"blocks.{upper}.{name}"
        yield Mutant(f"{name} {between}", given | {above: given[below], below: given[above]})
    neurons = _drawn_block(config, rng)
    swapped = {**given}
    for name, dim in (("W_in", 1), ("b_in", 0), ("W_out", 0)):
        below, above = f"blocks.{lower}.mlp.{name}", f"blocks.{upper}.mlp.{name}"
        swapped[above] = given[above].index_copy(dim, neurons, given[below].index_select(dim, neurons))
        swapped[below] = given[below].index_copy(dim, neurons, given[above].index_select(dim, neurons))
    yield Mutant(f"{len(neurons)} neurons, from {neurons[0]}, {between}", swapped)
