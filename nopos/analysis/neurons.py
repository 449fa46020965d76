"""MLP activations (notebook, step 6): of one sequence, their mean, the share active, and what tells them apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
def mlp_activations(
    model: NoPosTransformer, tokens: Int[Tensor, "batch pos"], *, layer: int, sequence: int = 0
) -> Activations:
    """What the neurons of a layer do, from slot 1 on for the share of variance: slot 0 is BOS alone.

    Args:
        sequence: which one to show alone.
    """
    name = f"blocks.{layer}.mlp.hook_post"
    _, cache = model.run_with_cache(tokens, names_filter=name)
    post = cache[name]
    mean = post.mean(dim=0)
    between_slots = mean[1:].var(dim=0, correction=0).sum()
    total = post[:, 1:].flatten(0, 1).var(dim=0, correction=0).sum()
    return Activations(
        of_one_sequence=post[sequence],
        mean=mean,
        share_active=(post > 0).to(post.dtype).mean(dim=0),
        share_by_slot=(between_slots / total).item() if total > 0 else 0.0,
    )
