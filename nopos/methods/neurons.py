"""MLP activations (notebook, step 6): of one sequence, their mean, the share active, and what tells them apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nopos.errors import AnalysisError
from nopos.methods.activations import Tokens, activation, centred
from nopos.model.hook_points import hook_point
from nopos.model.transformer import NoPosTransformer


@dataclass(frozen=True)
class Activations:
    """A layer's neurons after the ReLU."""

    of_one_sequence: Float[Tensor, "pos neuron"]
    mean: Float[Tensor, "pos neuron"]
    """Over the batch."""
    share_active: Float[Tensor, "pos neuron"]
    """Of the sequences, those in which the neuron is above zero."""
    share_by_position: float
    """Of the variance of what neurons write, over sequences and positions and summed over neurons, that between
    positions; 0 if none varies. Each is weighted by what the rest of the model can read of it, whatever its own scale.
    """


@torch.no_grad()
def mlp_activations(model: NoPosTransformer, tokens: Tokens, *, layer: int, sequence: int = 0) -> Activations:
    """What the neurons of a layer do, from position 1 on for the share of variance: position 0 is BOS alone.

    Args:
        sequence: which one to show alone.
    """
    if not 0 <= sequence < len(tokens):
        raise AnalysisError(f"sequence is {sequence}; there are {len(tokens)}, from 0 on")
    post = activation(model, tokens, hook_point(layer, "mlp.post"))
    mean = post.mean(dim=0)
    weight = centred(model.block(layer).mlp.W_out).pow(2).sum(dim=-1)  # [neuron]
    between_positions = (mean[1:].var(dim=0, correction=0) * weight).sum()
    total = (post[:, 1:].flatten(0, 1).var(dim=0, correction=0) * weight).sum()
    return Activations(
        of_one_sequence=post[sequence],
        mean=mean,
        share_active=(post > 0).to(post.dtype).mean(dim=0),
        share_by_position=(between_positions / total).item() if total > 0 else 0.0,
    )
