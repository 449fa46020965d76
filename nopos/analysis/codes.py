"""The code of position that MLP 0 makes of the count: its directions, its neurons, and layer 0 as a table.

A code is the mean activation at a slot. `residual_by_law` computes what layer 0 leaves for each token at each slot from
the weights and the law of dilution alone, no sequence being read.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from nopos.analysis.circuits import normalized_embedding
from nopos.analysis.counting import dilution
from nopos.analysis.patching import Codes, mean_code
from nopos.analysis.reading import Tokens, require_count
from nopos.analysis.replacement import Effect, effect_of
from nopos.config import BOS
from nopos.data import generator
from nopos.errors import AnalysisError
from nopos.model import NoPosTransformer

RESIDUAL, NEURONS_0 = "blocks.0.hook_resid_post", "blocks.0.mlp.hook_post"
PLANE = 2
"""Directions that hold nearly all of the code."""


def principal_shares(codes: Codes) -> Float[Tensor, " direction"]:
    """Share of the codes' variance along each of their principal directions, from slot 1 on; 0 where nothing varies."""
    variances = torch.linalg.svdvals(_centred(codes).double()).pow(2)
    return variances / variances.sum().clamp_min(torch.finfo(variances.dtype).tiny)


def principal_directions(codes: Codes) -> Float[Tensor, "direction d_model"]:
    """Unit vectors, that of the largest variance from slot 1 on first."""
    directions: Tensor = torch.linalg.svd(_centred(codes), full_matrices=False).Vh
    return directions


def smallest_turn(codes: Codes, *, stride: int) -> float:
    """Smallest cosine between two steps of the code, each over so many slots, that follow each other, from slot 1 on.

    1 on a straight line, below 0 where each slot has a direction of its own; 0 where the code does not move.

    Raises:
        AnalysisError: there are no two such steps.
    """
    if not 1 <= stride <= (len(codes) - 2) // 2:
        raise AnalysisError(f"stride is {stride}; with {len(codes)} slots it is 1 to {(len(codes) - 2) // 2}")
    steps = codes[1::stride].double().diff(dim=0)
    return torch.cosine_similarity(steps[1:], steps[:-1], dim=-1).min().item()


@torch.no_grad()
def effect_of_directions(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens, count: int, kept: bool
) -> Effect:
    """Effect of leaving the code in the residual stream after layer 0 only its first directions, or all but them.

    Content stays; so does slot 0.

    Args:
        other_tokens: what the codes and their principal directions are taken over.
        count: how many directions, those with the largest variance first.
        kept: whether they are all that is left, or what is taken away.
    """
    require_count("count", count, at_most=model.config.d_model)
    codes = mean_code(model, other_tokens, hook_point=RESIDUAL)
    along = _along(_centred(codes), principal_directions(codes)[:count])
    return _effect_of_adding(model, tokens, along - _centred(codes) if kept else -along, RESIDUAL)


@torch.no_grad()
def effect_of_noise_in_the_plane(model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens) -> Effect:
    """Effect of adding to each slot's code as much as lies outside its plane, in a random direction of the plane.

    What `effect_of_directions` is to be held against, two directions being kept (Makelov and others, 2023).
    """
    codes = mean_code(model, other_tokens, hook_point=RESIDUAL)
    plane, centred = principal_directions(codes)[:PLANE], _centred(codes)
    outside = centred - _along(centred, plane)
    noise = _along(torch.randn(centred.shape, generator=generator("noise in the plane", 0)).to(centred), plane)
    return _effect_of_adding(model, tokens, noise * (outside.norm(dim=-1) / noise.norm(dim=-1))[:, None], RESIDUAL)


@torch.no_grad()
def effect_of_keeping_neurons(model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens, count: int) -> Effect:
    """Effect of giving all but some neurons of MLP 0 the same mean activation in all slots after BOS.

    Those that are kept are the ones whose mean writes the most into the code's plane that depends on the slot. Content
    stays in all.

    Args:
        other_tokens: what the means and the plane are taken over.
        count: how many neurons are kept.
    """
    require_count("count", count, at_most=model.config.d_mlp)
    plane = principal_directions(mean_code(model, other_tokens, hook_point=RESIDUAL))[:PLANE]
    centred = _centred(mean_code(model, other_tokens, hook_point=NEURONS_0))
    written = centred.pow(2).mean(dim=0).sqrt() * (model.block(0).mlp.W_out @ plane.T).norm(dim=-1)
    frozen = written.argsort(descending=True)[count:]
    added = torch.zeros_like(centred)
    added[:, frozen] = -centred[:, frozen]
    return _effect_of_adding(model, tokens, added, NEURONS_0)


@torch.no_grad()
def residual_by_law(folded: NoPosTransformer) -> Float[Tensor, "token slot d_model"]:
    """What layer 0 leaves in the residual stream for each token in each slot, from the weights and the law alone.

    Attention gives the value of BOS and, for whatever else the slot sees, the mean value of the other tokens. Slot 0
    holds BOS and sees itself.

    Raises:
        AnalysisError: the model is not folded, or has more than one head.
    """
    if folded.config.n_heads != 1:
        raise AnalysisError(f"layer 0 has {folded.config.n_heads} heads; the law is put into tables for one")
    block, embedding = folded.block(0), normalized_embedding(folded)
    values = embedding @ block.attn.W_V[0] + block.attn.b_V[0]
    counts = torch.arange(folded.config.n_ctx).to(values)
    a = dilution(folded)[0].to(values)
    on_bos = rearrange(a, "token -> token 1") / (rearrange(a, "token -> token 1") + counts)
    mixed = torch.lerp(values[BOS + 1 :].mean(dim=0), values[BOS], on_bos[..., None])  # [token slot d_head]
    residual = folded.embed.W_E[:, None] + mixed @ block.attn.W_O[0] + block.attn.b_O
    residual = residual + block.mlp(block.ln2(residual))
    residual[:, 0] = residual[BOS, 0]
    return residual


def effect_of_layer_0_by_law(model: NoPosTransformer, tokens: Tokens, *, twin: NoPosTransformer) -> Effect:
    """Effect of replacing all of layer 0 by a table of the token and its slot, from the weights and the law.

    Args:
        twin: the folded model that the table is computed from.
    """
    table = residual_by_law(twin).float()[tokens, torch.arange(tokens.shape[-1])]
    return effect_of(model, tokens, RESIDUAL, lambda _: table)


def _centred(codes: Float[Tensor, "pos width"]) -> Float[Tensor, "slot_after_BOS width"]:
    return codes[1:] - codes[1:].mean(dim=0)


def _along(
    vectors: Float[Tensor, "slot d_model"], directions: Float[Tensor, "direction d_model"]
) -> Float[Tensor, "slot d_model"]:
    return einsum(vectors, directions, directions, "slot d_in, direction d_in, direction d_model -> slot d_model")


def _effect_of_adding(
    model: NoPosTransformer, tokens: Tokens, added: Float[Tensor, "slot_after_BOS width"], hook_point: str
) -> Effect:
    at_slots = torch.cat([torch.zeros_like(added[:1]), added])
    return effect_of(model, tokens, hook_point, lambda activation: activation + at_slots)
