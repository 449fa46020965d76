"""The position code: what layer 0 leaves of a position, its directions and its neurons.

A code is the mean activation at a position, content being averaged away.
"""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from nopos.errors import AnalysisError
from nopos.methods.activation_patching import mean_activation, with_norms_of
from nopos.methods.activations import OtherTokens, Tokens, centred, require_count
from nopos.methods.interventions import Effect, effect_of
from nopos.model.data import generator
from nopos.model.hook_points import hook_point
from nopos.model.transformer import NoPosTransformer

PLANE = 2
"""Directions that hold nearly all of the code."""

Codes = Float[Tensor, "pos width"]


def position_codes(model: NoPosTransformer, tokens: Tokens, *, layer: int = 0) -> Codes:
    """The mean residual that a layer leaves at each position, as later layers can read it."""
    return centred(mean_activation(model, tokens, hook_point=hook_point(layer, "resid_post")))


def centred_codes(codes: Codes) -> Float[Tensor, "pos_after_BOS width"]:
    """From position 1 on, less their mean."""
    return codes[1:] - codes[1:].mean(dim=0)


def principal_shares(codes: Codes) -> Float[Tensor, " direction"]:
    """Share of the codes' variance along each principal direction, from position 1 on; 0 where nothing varies."""
    variances = torch.linalg.svdvals(centred_codes(codes).double()).pow(2)
    return variances / variances.sum().clamp_min(torch.finfo(variances.dtype).tiny)


def principal_directions(codes: Codes) -> Float[Tensor, "direction width"]:
    """Unit vectors, that of the largest variance from position 1 on first."""
    directions: Tensor = torch.linalg.svd(centred_codes(codes), full_matrices=False).Vh
    return directions


def smallest_turn(codes: Codes, *, stride: int) -> float:
    """Smallest cosine between two chords of the code, each over so many positions, that follow each other.

    From position 1 on: 1 on a straight line, below 0 where each position has a direction of its own; 0 where the code
    does not move.

    Raises:
        AnalysisError: there are no two such chords.
    """
    if not 1 <= stride <= (len(codes) - 2) // 2:
        raise AnalysisError(f"stride is {stride}; with {len(codes)} positions it is 1 to {(len(codes) - 2) // 2}")
    chords = codes[1::stride].double().diff(dim=0)
    return torch.cosine_similarity(chords[1:], chords[:-1], dim=-1).min().item()


@torch.no_grad()
def effect_of_directions(
    model: NoPosTransformer,
    tokens: Tokens,
    *,
    other_tokens: OtherTokens,
    count: int,
    kept: bool,
    layer: int = 0,
    target_offset: int = 1,
) -> Effect:
    """Effect of leaving the code in the residual stream after a layer only its first directions, or all but them.

    Content stays; so does position 0.

    Args:
        other_tokens: what the codes and their principal directions are taken over.
        count: how many directions, those with the largest variance first.
        kept: whether they are all that is left, or what is taken away.
    """
    require_count("count", count, at_most=model.config.d_model)
    codes = position_codes(model, other_tokens, layer=layer)
    along = _along(centred_codes(codes), principal_directions(codes)[:count])
    added = along - centred_codes(codes) if kept else -along
    return _effect_of_adding(model, tokens, added, hook_point(layer, "resid_post"), target_offset)


@torch.no_grad()
def effect_of_noise_in_the_plane(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: OtherTokens, layer: int = 0, target_offset: int = 1
) -> Effect:
    """Effect of adding to each position's code as much as lies outside its plane, in a random direction of the plane.

    What `effect_of_directions` is to be held against, two directions being kept (Makelov and others, 2023).
    """
    codes = position_codes(model, other_tokens, layer=layer)
    plane, from_mean = principal_directions(codes)[:PLANE], centred_codes(codes)
    outside = from_mean - _along(from_mean, plane)
    noise = _along(torch.randn(from_mean.shape, generator=generator("noise in the plane", 0)).to(from_mean), plane)
    added = with_norms_of(noise, outside)
    return _effect_of_adding(model, tokens, added, hook_point(layer, "resid_post"), target_offset)


@torch.no_grad()
def effect_of_keeping_neurons(
    model: NoPosTransformer,
    tokens: Tokens,
    *,
    other_tokens: OtherTokens,
    count: int,
    layer: int = 0,
    target_offset: int = 1,
) -> Effect:
    """Effect of giving all but some neurons of a layer the same mean activation at all positions after BOS.

    Those that are kept are the ones whose mean writes the most into the code's plane that depends on the position.
    Content stays in all.

    Args:
        other_tokens: what the means and the plane are taken over.
        count: how many neurons are kept.
    """
    require_count("count", count, at_most=model.config.d_mlp)
    post = hook_point(layer, "mlp.post")
    plane = principal_directions(position_codes(model, other_tokens, layer=layer))[:PLANE]
    by_position = centred_codes(mean_activation(model, other_tokens, hook_point=post))
    written = by_position.pow(2).mean(dim=0).sqrt() * (model.block(layer).mlp.W_out @ plane.T).norm(dim=-1)
    frozen = written.argsort(descending=True)[count:]
    added = torch.zeros_like(by_position)
    added[:, frozen] = -by_position[:, frozen]
    return _effect_of_adding(model, tokens, added, post, target_offset)


def _along(
    vectors: Float[Tensor, "pos_after_BOS width"], directions: Float[Tensor, "direction width"]
) -> Float[Tensor, "pos_after_BOS width"]:
    return einsum(vectors, directions, directions, "pos width_in, direction width_in, direction width -> pos width")


def _effect_of_adding(
    model: NoPosTransformer,
    tokens: Tokens,
    added: Float[Tensor, "pos_after_BOS width"],
    name: str,
    target_offset: int,
) -> Effect:
    at_positions = torch.cat([torch.zeros_like(added[:1]), added])
    return effect_of(model, tokens, name, lambda activation: activation + at_positions, target_offset=target_offset)
