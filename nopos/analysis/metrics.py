"""Metrics beside the loss, which can stay where it was while every answer changes (causal scrubbing's pitfall)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

Logits = Float[Tensor, "batch pos d_vocab"]


def per_token_kl(before: Logits, after: Logits) -> Float[Tensor, "batch predicted"]:
    """KL divergence in nats of the answers `before` from those `after`, at each slot with a previous token.

    It is 0 where the two agree, and otherwise positive whatever the loss does.
    """
    p, q = before[:, 1:].log_softmax(dim=-1), after[:, 1:].log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1)


def logit_difference(logits: Logits, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch predicted"]:
    """The previous token's logit less the current token's, at each slot with a previous token.

    The current token is what the right answer has to win against: it is what layer 1 attends to most.
    """
    answers = logits[:, 1:]
    previous, current = (answers.gather(-1, which[..., None])[..., 0] for which in (tokens[:, :-1], tokens[:, 1:]))
    return previous - current


def correlation(first: Float[Tensor, ...], second: Float[Tensor, ...]) -> float:
    """Pearson's correlation over all entries of two arrays of one shape; 0 where one of them is constant."""
    a, b = (values.double().flatten() - values.double().mean() for values in (first, second))
    norms = a.norm() * b.norm()
    return (torch.dot(a, b) / norms).item() if norms > 0 else 0.0


def rank_correlation(first: Float[Tensor, ...], second: Float[Tensor, ...]) -> float:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing theirs; 0 where one array is constant."""
    return correlation(_ranks(first), _ranks(second))


def _ranks(values: Float[Tensor, ...]) -> Float[Tensor, ...]:
    _, place, count = values.flatten().unique(return_inverse=True, return_counts=True)
    last = count.cumsum(dim=0).double()
    return (last - (count - 1) / 2)[place]
