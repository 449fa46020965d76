"""Linear probes for position: what can be read from an activation, never what is used.

A probe that is rich enough reads anything, so each comes with a control task (Hewitt and Liang, 2019): the same probe
asked for labels that position determines but no code of it is made for. Chi and others (2023) found that position can
be read at random weights too, so a model is held against itself untrained.
"""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float, Float64
from torch import Tensor

from nopos.errors import AnalysisError
from nopos.methods.activations import OtherTokens, Tokens, activation, centred
from nopos.model.data import generator
from nopos.model.transformer import NoPosTransformer


def linear_r2(
    features: Float[Tensor, "sample feature"],
    labels: Float[Tensor, " sample"],
    held_out_features: Float[Tensor, "held_out feature"],
    held_out_labels: Float[Tensor, " held_out"],
) -> float:
    """Share of the held-out labels' variance that a least-squares fit with an intercept explains.

    1 when it is right everywhere, 0 when it does as well as their mean, below 0 when worse.
    """
    weights = torch.linalg.lstsq(_with_intercept(features), labels[:, None].double(), driver="gelsd").solution[:, 0]
    predicted = einsum(_with_intercept(held_out_features), weights, "held_out feature, feature -> held_out")
    residual = (held_out_labels - predicted).pow(2).sum()
    return (1 - residual / (held_out_labels.double() - held_out_labels.double().mean()).pow(2).sum()).item()


@torch.no_grad()
def position_r2(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: OtherTokens, hook_point: str, control_task: bool = False
) -> float:
    """R² on `tokens` of a linear probe for the position, fitted on `other_tokens`, from position 1 on.

    Args:
        hook_point: of what is written to the residual stream, [batch pos d_model].
        control_task: ask for a fixed random order of the positions instead.
    """
    positions = torch.arange(tokens.shape[-1], dtype=torch.float64)
    if control_task:
        positions = positions[torch.randperm(len(positions), generator=generator("control task", 0))]
    fitted, held_out = (_after_bos(model, which, hook_point) for which in (other_tokens, tokens))
    return linear_r2(
        fitted.flatten(0, 1),
        positions[1:].repeat(len(other_tokens)),
        held_out.flatten(0, 1),
        positions[1:].repeat(len(tokens)),
    )


def untrained_position_r2(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: OtherTokens, hook_point: str, seed: int = 0
) -> float:
    """`position_r2` of a model of the same sizes that never saw a token."""
    untrained = NoPosTransformer.initialised(model.config, seed)
    return position_r2(untrained, tokens, other_tokens=other_tokens, hook_point=hook_point)


def _after_bos(
    model: NoPosTransformer, tokens: Tokens, hook_point: str
) -> Float64[Tensor, "batch pos_after_BOS d_model"]:
    read = activation(model, tokens, hook_point)
    if read.ndim != 3:
        raise AnalysisError(f"{hook_point} is {list(read.shape)}; a probe reads [batch pos d_model]")
    return centred(read[:, 1:].double())


def _with_intercept(features: Float[Tensor, "sample feature"]) -> Float[Tensor, "sample feature_and_one"]:
    return torch.cat([features.double(), features.new_ones(len(features), 1).double()], dim=1)
