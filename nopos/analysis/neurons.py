"""MLP activations (notebook, step 6): of one sequence, their mean, the share active, and what tells them apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nopos.analysis.reading import Tokens, activation
from nopos.errors import AnalysisError
from nopos.model import NoPosTransformer


@dataclass(frozen=True)
class Activations:
    """A layer's neurons after the ReLU."""

    of_one_sequence: Float[Tensor, "pos neuron"]
    mean: Float[Tensor, "pos neuron"]
    """Over the batch."""
    share_active: Float[Tensor, "pos neuron"]
    """Of the sequences, those in which the neuron is above zero."""
    share_by_slot: float
    """Of the variance over sequences and slots, summed over neurons: the share between slots; 0 if nothing varies."""


@torch.no_grad()
def mlp_activations(model: NoPosTransformer, tokens: Tokens, *, layer: int, sequence: int = 0) -> Activations:
    """What the neurons of a layer do, from slot 1 on for the share of variance: slot 0 is BOS alone.

    Args:
        sequence: which one to show alone.
    """
    if not 0 <= sequence < len(tokens):
        raise AnalysisError(f"sequence is {sequence}; there are {len(tokens)}, from 0 on")
    post = activation(model, tokens, f"blocks.{layer}.mlp.hook_post")
    mean = post.mean(dim=0)
    between_slots = mean[1:].var(dim=0, correction=0).sum()
    total = post[:, 1:].flatten(0, 1).var(dim=0, correction=0).sum()
    return Activations(
        of_one_sequence=post[sequence],
        mean=mean,
        share_active=(post > 0).to(post.dtype).mean(dim=0),
        share_by_slot=(between_slots / total).item() if total > 0 else 0.0,
    )
